import json

import pytest

from xception_flax import config as configs
from xception_flax.base.errors import UserError
from xception_flax.runtime import workdirs


def test_classes_are_read_as_they_were_written(tmp_path):
    assert workdirs.read_classes(tmp_path) is None
    for names in (['Katze', 'Кошка', '猫'], []):
        workdirs.write_settings(tmp_path, configs.default(), names)
        assert workdirs.read_classes(tmp_path) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ['classes.json', 'config.json']


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        (['cat', 'fox'], r"\(class 1: 'dog' -> 'fox'\): restore them"),
        (['cat', 'bee', 'dog'], r"\(class 1: 'dog' -> 'bee'\)"),
        (['cat'], r"\(class 1: 'dog' -> None\)"),
    ],
)
def test_a_run_does_not_resume_with_other_classes(tmp_path, names, says):
    config = configs.default()
    workdirs.write_settings(tmp_path, config, ['cat', 'dog'])
    assert workdirs.check_fits(tmp_path, config, ('cat', 'dog')) == []
    with pytest.raises(UserError, match=says):
        workdirs.check_fits(tmp_path, config, names)


def test_a_run_without_class_names_resumes(tmp_path):
    config = configs.default()
    workdirs.write_settings(tmp_path, config, ['cat', 'dog'])
    (tmp_path / 'classes.json').unlink()
    assert workdirs.check_fits(tmp_path, config, ['cat', 'fox']) == []


@pytest.mark.parametrize('text', ['["cat", "d', '3', ''])
def test_damaged_names_are_an_error_in_one_line(tmp_path, text):
    (tmp_path / 'classes.json').write_text(text)
    with pytest.raises(UserError, match=r'classes\.json is damaged') as caught:
        workdirs.read_classes(tmp_path)
    assert '\n' not in str(caught.value)


def test_names_are_readable_json(tmp_path):
    workdirs.write_settings(tmp_path, configs.default(), ('cat', 'dog'))
    text = (tmp_path / 'classes.json').read_text()
    assert json.loads(text) == ['cat', 'dog']
    assert text.count('\n') == 4

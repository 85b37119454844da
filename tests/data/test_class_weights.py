import pytest
from helpers import small_config

from xception_flax.base.errors import UserError
from xception_flax.data import class_weights, sources
from xception_flax.training import checks
from xception_flax.training.metrics import Task


def load(path):
    c = small_config(dataset__class_weights=str(path or ''))
    return class_weights.load(c, sources.load(c, 'test'))


def test_without_a_file_all_classes_weigh_the_same():
    assert load(None).tolist() == [1] * 10


def test_json_and_csv_name_classes_and_others_weigh_nothing(tmp_path):
    (tmp_path / 'weights.json').write_text('{"3": 0.5, "7": 2}')
    (tmp_path / 'weights.csv').write_text('3,0.5\n7, 2\n')
    for name in ('weights.json', 'weights.csv'):
        assert load(tmp_path / name).tolist() == [0, 0, 0, 0.5, 0, 0, 0, 2, 0, 0]


def test_they_are_refused_where_they_do_nothing(tmp_path):
    (tmp_path / 'weights.csv').write_text('3,0.5\n')
    c = small_config(dataset__class_weights=str(tmp_path / 'weights.csv'))
    source = sources.load(c, 'test')
    task = Task('softmax', class_weights.load(c, source))
    with pytest.raises(UserError, match=r'weights in the loss are config\.loss_weights'):
        checks.check_best(c, task, source)


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('w.json', '{"cat": 1}', "there is no class 'cat'; choose from"),
        ('w.json', '{"3": -1}', "'3' weighs -1; give a number, 0 or above"),
        ('w.json', '{"3": null}', "'3' weighs None"),
        ('w.csv', '3,nan', "'3' weighs 'nan'"),
        ('w.csv', '3,0', 'all weights are 0'),
        ('w.csv', '3', 'cannot be read as JSON or CSV'),
        ('w.json', '[1, 2]', 'cannot be read as JSON or CSV'),
        ('w.json', '{', 'cannot be read as JSON or CSV'),
    ],
)
def test_a_wrong_file_is_an_error_that_says_what_is_wrong(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        load(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        load(tmp_path / 'none.csv')

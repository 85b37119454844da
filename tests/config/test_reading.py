import json

import pytest
from absl import flags

from xception_flax import config as configs
from xception_flax.base.errors import UserError
from xception_flax.config import reading

FILE = """
from xception_flax import config as configs
def get_config():
    c = configs.default()
    c.total_epochs = 2.0
    c.schedule.decay_epochs = 1.0
    {line}
    return c
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parses a command line for a config file with one more line in it."""

    def run(*args, line='pass', arguments=''):
        path = tmp_path / 'some.py'
        path.write_text(FILE.format(line=line))
        values = flags.FlagValues()
        monkeypatch.setattr(flags, 'FLAGS', values)
        argv = ['main', f'--config={path}', *args]
        monkeypatch.setattr('sys.argv', argv)
        reading.config_flags.DEFINE_config_file('config', None, 'a config', flag_values=values)
        rest = reading.parse_flags(argv, arguments)
        return rest[1:] if arguments else values.config

    return run


def test_settings_are_overridden_by_path(parse):
    c = parse(
        '--config.batch_size=64', '--config.xception.residual=False', '--config.augment.pad=2'
    )
    assert (c.batch_size, c.xception.residual, c.augment.pad) == (64, False, 2)
    assert parse('--noconfig.xception.residual').xception.residual is False
    assert parse('--config.xception.fc_layers=(4096,4096)').xception.fc_layers == (4096, 4096)


def test_a_unit_on_the_command_line_replaces_the_one_in_the_file(parse):
    c = parse('--config.total_steps=50', '--config.schedule.decay_examples=10')
    assert (c.total_steps, c.total_epochs) == (50, None)
    assert (c.schedule.decay_examples, c.schedule.decay_epochs) == (10, None)


def test_two_units_on_the_command_line_are_left_for_the_check_to_refuse(parse):
    c = parse('--config.total_steps=50', '--config.total_epochs=3')
    assert (c.total_steps, c.total_epochs) == (50, 3.0)


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['--config.batch_sise=4'], 'config.batch_sise; did you mean config.batch_size?'),
        (['--config.residual=False'], 'config.residual; did you mean config.xception.residual?'),
        (['--config.model.residual=1'], 'did you mean config.xception.residual?'),
        (['--config.optimizer.lr=1'], 'there is no setting config.optimizer.lr'),
        (['--config.batch_sise', '4'], 'config.batch_sise; did you mean config.batch_size?'),
        (['--noconfig.xception.residul'], 'did you mean config.xception.residual?'),
        (['--config.batch_size=ten'], 'ten'),
        (['--config.zebra=1'], 'schema.py'),
        (['oops'], "'oops' is not understood"),
        (['--workdr=1'], 'workdr'),
    ],
)
def test_mistakes_on_the_command_line_end_in_one_line(parse, args, says):
    with pytest.raises(SystemExit) as caught:
        parse(*args)
    assert says in caught.value.code
    assert caught.value.code.startswith('error: ')
    assert '\n' not in caught.value.code


def test_arguments_stand_anywhere_among_the_flags(parse):
    assert parse('a', '--config.batch_size=2', 'b', arguments='SOURCE TARGET') == ['a', 'b']
    for given in (['a'], ['a', 'b', 'c']):
        assert parse(*given, arguments='IMAGE...') == given
        assert parse('x', *given, arguments='NAME IMAGE...') == ['x', *given]


@pytest.mark.parametrize(
    ('args', 'arguments', 'says'),
    [
        ([], 'IMAGE...', 'IMAGE is missing; see --help'),
        (['a'], 'SOURCE TARGET', 'TARGET is missing; see --help'),
        (['a', 'b', 'c'], 'SOURCE TARGET', "'c' is not understood; see --help"),
    ],
)
def test_too_few_and_too_many_arguments_are_errors(parse, args, arguments, says):
    with pytest.raises(SystemExit) as caught:
        parse(*args, arguments=arguments)
    assert caught.value.code == f'error: {says}'


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        (
            'c.batchsize = 4',
            "some.py:7: there is no setting 'batchsize'; did you mean config.batch_size",
        ),
        ('c.optimiser.name = "sgd"', "'optimiser.name'; did you mean config.optimizer.name"),
        ('c.batch_size = "many"', "batch_size takes int, not 'many'"),
        ('c.batch_size = 1.5', 'batch_size takes int, not 1.5'),
        ('1 / 0', 'some.py:7: ZeroDivisionError'),
        ('return None', 'must return the config'),
    ],
)
def test_mistakes_in_a_file_are_reported_with_their_line(parse, line, says):
    with pytest.raises(SystemExit) as caught:
        parse(line=line)
    assert says in caught.value.code
    assert '\n' not in caught.value.code


def test_a_missing_file_is_reported_with_the_nearest_name(tmp_path):
    (tmp_path / 'digits.py').touch()
    with pytest.raises(UserError, match=r"did you mean '.*digits.py'"):
        reading.read_file(str(tmp_path / 'digit.py'))


def test_a_config_survives_json(tmp_path):
    c = configs.default()
    c.total_epochs = 1.5
    c.xception.fc_layers = (10, 20)
    c.dataset.num_classes = 7
    path = tmp_path / 'config.json'
    path.write_text(reading.to_json(c))
    again = reading.from_json(path)
    assert again.to_dict() == c.to_dict()
    assert isinstance(again.xception.fc_layers, tuple)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('{', 'damaged'),
        (json.dumps({'batchsize': 1}), 'did you mean config.batch_size'),
        (json.dumps({'batch_size': 'x'}), 'batch_size takes int'),
    ],
)
def test_a_bad_json_is_one_line(tmp_path, text, says):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        reading.from_json(tmp_path / 'config.json')
    assert '\n' not in str(caught.value)


def test_a_missing_json_says_that_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match='holds no run'):
        reading.from_json(tmp_path / 'config.json')


def test_a_stored_config_is_a_config_file_and_other_json_files_are_not(tmp_path, monkeypatch):
    c = configs.default()
    c.batch_size = 7
    path = tmp_path / 'config.json'
    path.write_text(reading.to_json(c))
    for given in ([f'--config={path}'], ['--config', str(path)]):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, 'FLAGS', values)
        argv = ['main', *given, '--config.seed=3', '--output=numbers.json']
        monkeypatch.setattr('sys.argv', argv)
        reading.config_flags.DEFINE_config_file('config', None, 'a config', flag_values=values)
        flags.DEFINE_string('output', None, 'a file', flag_values=values)
        assert reading.parse_flags(argv) == ['main']
        assert (values.config.batch_size, values.config.seed) == (7, 3)
        assert values.output == 'numbers.json'
        assert reading.command_line() == (values.config, {'seed': 3})

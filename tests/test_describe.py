"""The program that describes a network, as a user starts it."""

import json

import pytest

from xception_flax import config as configs
from xception_flax.analysis import networks
from xception_flax.base.errors import UserError
from xception_flax.config import reading

XCEPTION = ('-m', 'xception_flax.describe', '--config=configs/imagenet.py')


def test_the_tables_say_what_the_network_costs(program, tmp_path):
    files = [tmp_path / 'xception.svg', tmp_path / 'xception.png']
    output = program(*XCEPTION, *(f'--save={file}' for file in files))
    lines = [line.split() for line in output.splitlines()]
    assert 'xception for images of 299x299x3 and 1000 classes' in output
    assert ['conv1/conv', '3x3', '/2', '149x149x32', '864', '19,181,664', '0.2%'] in lines
    assert ['middle_flow', '19x19x728', '12,911,808', '4,648,547,904', '55.6%'] in lines
    assert ['8', 'x', 'block1-8', '19x19x728', '12,911,808', '4,648,547,904', '55.6%'] in lines
    assert ['trainable', 'parameters', '22,855,952'] in lines
    assert [line[-1] for line in lines if line[:1] == ['statistics']] == ['54,528']
    assert ['parameters', '22,855,952', '179,071,688', '7.8'] in lines
    assert ['MACs', '8,357,403,496', '68,818,345,696', '8.2'] in lines
    assert '1,728 weights; a separable one 3x3x3 + 3x64 = 219' in output
    assert '\x1b' not in output  # no colours in a pipe
    assert all(file.stat().st_size > 20_000 for file in files)
    assert all(f'drawn: {file}' in output for file in files)


def test_json_is_one_object(program):
    output = program(*XCEPTION, '--config.xception.residual=False', '--json')
    found = json.loads(output)
    assert found['model'] == 'xception'
    assert found['options']['residual'] is False
    assert found['parameters'] == 21_878_880
    assert found['input'] == [299, 299, 3]
    assert sum(layer['macs'] for layer in found['layers']) == found['macs']
    assert sum(layer['share'] for layer in found['layers']) == pytest.approx(1)
    assert found['layers'][0] | {'share': 0} == {
        'path': 'entry_flow/conv1/conv', 'kind': 'conv', 'kernel': [3, 3, 3, 32], 'strides': 2,
        'output': [149, 149, 32], 'parameters': 864, 'statistics': 0, 'macs': 19_181_664,
        'activation_bytes': 2 * 149 * 149 * 32, 'share': 0,
    }  # fmt: skip
    assert found['separable']['convolutions'] == 34


def test_the_number_of_classes_is_that_of_the_data_or_of_imagenet():
    config = reading.read_file('configs/digits.py')
    config, model = networks.choose(config, None, None)
    assert config.dataset.num_classes == model.num_classes == 10
    config = reading.read_file('configs/imagenet.py')
    config.dataset.data_dir = '/nowhere'
    assert networks.choose(config, None, None)[1].num_classes == 1000
    config.dataset.num_classes = 5
    assert networks.choose(config, None, None)[1].num_classes == 5


def test_the_network_of_a_run_is_that_of_its_config(tmp_path):
    config = configs.default()
    config.dataset.num_classes, config.xception.width = 7, 0.5
    (tmp_path / 'config.json').write_text(reading.to_json(config))
    found, model = networks.choose(None, str(tmp_path), None)
    assert found == config
    assert (model.num_classes, model.width) == (7, 0.5)
    with pytest.raises(UserError, match='holds no run'):
        networks.choose(None, str(tmp_path / 'other'), None)


@pytest.mark.parametrize(
    'flags', [[], ['--config=configs/digits.py', '--workdir=/a'], ['--workdir=/a', '--weights=b']]
)
def test_one_network_is_named(program, flags):
    output = program('-m', 'xception_flax.describe', *flags, status=1)
    assert output == 'error: give one of --config, --workdir and --weights; see --help\n'


def test_a_drawing_of_another_kind_is_refused(program):
    output = program(*XCEPTION, '--save=a.jpg', status=1)
    assert output == 'error: --save=a.jpg ends neither in .svg nor in .png\n'

import pathlib

import pytest

from xception_flax import config as configs
from xception_flax.config import reading
from xception_flax.config.checks import check_values
from xception_flax.runtime.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def config(**settings):
    c = configs.default()
    c.total_steps = 100
    c.dataset.source = 'digits'
    c.schedule.decay_epochs = 2.0
    c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in settings.items()})
    return c


def check(c, devices=8):
    return configs.check(c, examples=1000, num_classes=10, devices=devices)


def test_the_base_passes():
    assert check(config()).total == 100


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_its_own_checks(path):
    c = reading.read_file(str(path))
    check_values(c)
    configs.check(c, examples=10_000, num_classes=10, devices=8 if path.stem == 'imagenet' else 1)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'model': 'xceptio'}, "did you mean 'xception'"),
        ({'dtype': 'float16'}, 'config.dtype'),
        ({'dataset__source': 'digit'}, "did you mean 'digits'"),
        ({'batch_size': 0}, 'config.batch_size is 0'),
        ({'batch_size': 36}, 'multiple of 8'),
        ({'batch_size': 40, 'accumulation': 3}, 'multiple of 24'),
        ({'xception__bn_group_size': 5}, 'bn_group_size is 5'),
        ({'image_size': 64}, 'config.image_size is 64, too small'),
        ({'xception__dropout': 2.0}, 'dropout is 2.0'),
        ({'xception__variant': 'torch'}, 'variant'),
        ({'dataset__num_classes': 1000}, 'the data has 10 classes'),
        ({'dataset__num_examples': 999}, 'num_examples is 999, but train has 1,000'),
        ({'augment__area': (0.5, 0.1)}, 'config.augment.area'),
        ({'augment__area': (0.1,)}, 'config.augment.area'),
        ({'augment__area': ('a', 'b')}, 'config.augment.area'),
        ({'xception__fc_layers': (64.5,)}, 'fc_layers is'),
        ({'nonfinite': 'ignore'}, 'config.nonfinite'),
        ({'max_unreadable': 2.0}, 'config.max_unreadable'),
        ({'augment__crop': 'random'}, 'config.augment.crop'),
        ({'interpolation': 'cubic'}, "did you mean 'bicubic'"),
        ({'crop_fraction': 0.0}, 'config.crop_fraction'),
        ({'optimizer__momentum': 1.0}, 'config.optimizer.momentum'),
        ({'ema_decay': 1.0}, 'config.ema_decay'),
        ({'schedule__decay_epochs': None}, 'schedule.decay_epochs'),
        ({'schedule__warmup_steps': 100}, 'warm-up of 100 steps'),
        ({'label_smoothing': -0.1}, 'config.label_smoothing'),
        ({'seed': -1}, 'config.seed'),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        check(config(**settings))
    assert '\n' not in str(caught.value)

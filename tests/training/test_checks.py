import pytest
from helpers import ROOT, default_config

from xception_flax.base.errors import UserError
from xception_flax.config import reading
from xception_flax.training import checks

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def check(**settings):
    settings = {'total_steps': 100, 'schedule__decay_epochs': 2.0, **settings}
    return checks.check(default_config(**settings), examples=1000, num_classes=10, devices=8)


def test_the_defaults_pass():
    assert check().total == 100


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_its_own_checks(path):
    c = reading.read_file(str(path))
    checks.check(c, examples=10_000, num_classes=10, devices=8 if path.stem == 'imagenet' else 1)


def test_one_class_cannot_be_learnt():
    c = default_config(total_steps=10, schedule__decay_epochs=2.0)
    with pytest.raises(UserError, match='train has one class only'):
        checks.check(c, examples=1000, num_classes=1, devices=1)
    assert checks.check(c, examples=1000, num_classes=2, devices=1)


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
        ({'best': 'top_1'}, "config.best is 'top_1'; did you mean 'top1'"),
        ({'nonfinite': 'ignore'}, 'config.nonfinite'),
        ({'max_unreadable': 2.0}, 'config.max_unreadable'),
        ({'augment__crop': 'inception'}, 'config.augment.crop'),
        ({'protocol': 'tf'}, 'config.protocol'),
        ({'protocol': 'inception', 'interpolation': 'bicubic'}, "choose from .'bilinear'"),
        ({'interpolation': 'cubic'}, "did you mean 'bicubic'"),
        ({'crop_fraction': 0.0}, 'config.crop_fraction'),
        ({'optimizer__momentum': 1.0}, 'config.optimizer.momentum'),
        ({'ema_decay': 1.0}, 'config.ema_decay'),
        ({'schedule__decay_epochs': None}, 'schedule.decay_epochs'),
        ({'schedule__warmup_steps': 100}, 'warm-up of 100 steps'),
        ({'label_smoothing': -0.1}, 'config.label_smoothing'),
        ({'seed': -1}, 'config.seed'),
        ({'dataset__eval_fraction': 0.1}, "is for images in folders, .* is 'tfds'"),
        ({'dataset__labels': 'x.csv'}, "is for images in folders, .* is 'tfds'"),
        ({'dataset__source': 'folder', 'dataset__labels': 'x.csv'}, 'needs either {split}'),
        ({'loss': 'sigmoid', 'loss_weights': 'balanced'}, 'loss_weights is for'),
    ],
)
def test_impossible_settings_are_errors_in_one_line(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        check(**settings)
    assert '\n' not in str(caught.value)

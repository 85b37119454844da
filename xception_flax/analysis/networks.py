"""The network to look at: that of a config, of a run or of a weights file."""

import jax
from ml_collections import ConfigDict

from xception_flax import models
from xception_flax.base import paths
from xception_flax.config import reading
from xception_flax.data import sources
from xception_flax.training.checks import check_values
from xception_flax.weights import load


def choose(
    config: ConfigDict | None, workdir: str | None, weights: str | None
) -> tuple[ConfigDict, models.Network]:
    """The config of the one that is given, with its number of classes, and its network.

    The data of `config` need not be there.

    Raises:
      UserError: what is given is not there, or a setting cannot work.
    """
    if weights:
        config = load(weights).config
    elif workdir:
        config = reading.from_json(paths.path(workdir) / 'config.json')
    else:
        assert config is not None
        config.dataset.num_classes = sources.num_classes(config)
    if config.dtype == 'float64':
        jax.config.update('jax_enable_x64', True)
    check_values(config)
    return config, models.build_model(config, config.dataset.num_classes)

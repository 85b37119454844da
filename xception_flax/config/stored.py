"""A config file, as `configs/` has them, that gives the stored config of a run."""

from ml_collections import ConfigDict

from xception_flax.config import reading, schema


def get_config(path: str = '') -> ConfigDict:
    """The config of a run's `config.json`; without a path the defaults.

    Raises:
      UserError: there is no such file, or it is no config of this version.
    """
    return reading.read_file(path) if path else schema.default()

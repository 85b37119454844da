"""The settings of a run: their schema, durations, and how they are read."""

from xception_flax.config.durations import Durations as Durations
from xception_flax.config.reading import start_from as start_from
from xception_flax.config.schema import default as default

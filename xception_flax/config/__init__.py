"""The settings of a run: their schema, how they are read, and what is checked."""

from xception_flax.config.checks import check as check
from xception_flax.config.durations import Durations as Durations
from xception_flax.config.reading import start_from as start_from
from xception_flax.config.schema import default as default

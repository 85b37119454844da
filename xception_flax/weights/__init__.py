"""Trained networks as one value, and everything that reads or writes one."""

from xception_flax.weights.loading import load as load
from xception_flax.weights.trained import Trained as Trained

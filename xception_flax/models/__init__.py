"""The networks: their layers, a base class, the registry, shapes and counts."""

from xception_flax.models.base import Network as Network
from xception_flax.models.base import abstract_variables as abstract_variables
from xception_flax.models.base import head_layer as head_layer
from xception_flax.models.registry import MODELS as MODELS
from xception_flax.models.registry import build_model as build_model
from xception_flax.models.registry import create_model as create_model
from xception_flax.models.registry import end_points as end_points
from xception_flax.models.registry import name_of as name_of
from xception_flax.models.registry import options as options

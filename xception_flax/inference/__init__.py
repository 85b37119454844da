"""From images to labels: preprocessing, prediction, class activation maps, drawing of results."""

from xception_flax.inference.activation import class_activation_maps as class_activation_maps
from xception_flax.inference.prediction import Label as Label
from xception_flax.inference.prediction import Prediction as Prediction
from xception_flax.inference.preprocessing import preprocess as preprocess

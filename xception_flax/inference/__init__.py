"""Using a trained network: from pictures to labels with probabilities."""

from xception_flax.inference.activation import class_activation_maps as class_activation_maps
from xception_flax.inference.prediction import Label as Label
from xception_flax.inference.prediction import Prediction as Prediction
from xception_flax.inference.prediction import predict as predict
from xception_flax.inference.preprocessing import preprocess as preprocess

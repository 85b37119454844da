import keras
import pytest
from keras.src.backend.common import dtypes


@pytest.fixture
def keras_float64(float64, monkeypatch):
    """Keras in float64; its batch norm on JAX would be float32, by a rule that is changed here."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, 'float64', 'float64')
    keras.config.set_floatx('float64')
    keras.config.set_dtype_policy('float64')
    yield
    keras.config.set_floatx('float32')
    keras.config.set_dtype_policy('float32')

import jax
import keras
import pytest
from keras.src.backend.common import dtypes


@pytest.fixture
def float64(monkeypatch):
    """Keras on JAX computes batch norm and means in float32 even then; its rule is changed here."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, 'float64', 'float64')
    jax.config.update('jax_enable_x64', True)
    keras.config.set_floatx('float64')
    keras.config.set_dtype_policy('float64')
    yield
    jax.config.update('jax_enable_x64', False)
    keras.config.set_floatx('float32')
    keras.config.set_dtype_policy('float32')

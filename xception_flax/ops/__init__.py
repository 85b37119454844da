"""Operations whose speed decides the network's: one meaning each, a lowering a kind of device."""

from xception_flax.ops.convolution import conv as conv
from xception_flax.ops.depthwise import depthwise_conv as depthwise_conv
from xception_flax.ops.lowering import CHOICES as CHOICES
from xception_flax.ops.lowering import forward_options as forward_options
from xception_flax.ops.lowering import lowerings as lowerings
from xception_flax.ops.normalisation import normalise as normalise
from xception_flax.ops.pooling import max_pool as max_pool
from xception_flax.ops.separable import separable_conv as separable_conv

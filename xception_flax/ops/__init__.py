"""The performance-critical operations: one definition each, one implementation per backend."""

from xception_flax.ops.convolution import NHWC as NHWC
from xception_flax.ops.convolution import conv as conv
from xception_flax.ops.depthwise import depthwise_conv as depthwise_conv
from xception_flax.ops.fused import Launch as Launch
from xception_flax.ops.fused import fused_separable_conv as fused_separable_conv
from xception_flax.ops.fused import launch as launch
from xception_flax.ops.lowering import CHOICES as CHOICES
from xception_flax.ops.lowering import forward_options as forward_options
from xception_flax.ops.lowering import lowerings as lowerings
from xception_flax.ops.lowering import reference_only as reference_only
from xception_flax.ops.normalisation import normalise as normalise
from xception_flax.ops.pooling import max_pool as max_pool
from xception_flax.ops.separable import separable_conv as separable_conv

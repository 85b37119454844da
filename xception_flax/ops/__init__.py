"""Operations whose speed decides the network's: one meaning each."""

from xception_flax.ops.depthwise import depthwise_conv as depthwise_conv
from xception_flax.ops.depthwise import plain as plain

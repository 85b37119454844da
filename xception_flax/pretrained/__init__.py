"""Weights of Keras, timm and our own: read, written, and what is known of them."""

from xception_flax.pretrained.known import table as table
from xception_flax.pretrained.load import load_pretrained as load_pretrained
from xception_flax.pretrained.save import check_target as check_target
from xception_flax.pretrained.save import differences as differences
from xception_flax.pretrained.save import save_pretrained as save_pretrained

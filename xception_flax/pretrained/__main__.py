"""Prints what is known of published weights: python -m xception_flax.pretrained."""

from xception_flax.pretrained import known

print(known.table())

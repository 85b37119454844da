"""The mathematics of a training step, and the loop around it."""

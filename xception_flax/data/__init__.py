"""From encoded pictures to batches: sources -> pictures -> pipeline."""

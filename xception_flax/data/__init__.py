"""From encoded images to batches: sources -> reader -> images -> pipeline."""

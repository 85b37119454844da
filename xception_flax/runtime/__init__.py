"""What a run needs around its mathematics: devices, checkpoints, logs, progress, errors."""

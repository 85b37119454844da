"""Fine-tuning, beside Keras and on few digits."""

"""Training: the run, the trainer, the loss monitor, resume points and the log."""

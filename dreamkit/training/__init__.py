"""Training: the run, the loop, the losses watched, and the log."""

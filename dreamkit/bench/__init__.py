"""Measures kernels, a training step and drawing, all in under nine minutes: `python -m dreamkit.bench`."""

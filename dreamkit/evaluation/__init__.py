"""Tasks, which measure a model."""

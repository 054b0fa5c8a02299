"""Tasks, which evaluate a model."""

"""Shapes, parameters, memory and operations of a training step, computed without weights."""

"""Shapes, parameters, memory and operations of a training step, told without weights."""

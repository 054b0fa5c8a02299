"""Evaluation for dreamkit: metrics that equal the reference implementations."""

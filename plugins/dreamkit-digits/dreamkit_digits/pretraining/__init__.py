"""Pretraining of the tiny parts, for `python -m dreamkit_digits.pretrain` only."""

"""How the miniature parts were pretrained; used by `python -m dreamkit_digits.pretrain` only."""

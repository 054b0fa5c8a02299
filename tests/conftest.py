"""Settings of every test: one thread (several test processes share few cores) and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)

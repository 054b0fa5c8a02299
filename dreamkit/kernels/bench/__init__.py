"""Measures the kernels against eager PyTorch, `torch.compile` and the roofline: `python -m dreamkit.kernels.bench`."""

"""Folders of tiny models in timm's format."""

import pytest
import timm
import torch
from timm.models import save_for_hf


@pytest.fixture
def source(tmp_path):
    """A function that writes a model with its head to a folder, and returns the folder and the model."""

    def write(config):
        torch.manual_seed(0)
        arguments = {name: value for name, value in config.items() if name != "architecture"}
        model = timm.create_model(config["architecture"], num_classes=5, **arguments)
        for (
            parameter
        ) in model.parameters():  # initial layer scales and tokens are too small to have an effect
            torch.nn.init.normal_(parameter, std=0.2)
        save_for_hf(model, tmp_path / "model", safe_serialization=True)
        return str(tmp_path / "model"), model.eval()

    return write

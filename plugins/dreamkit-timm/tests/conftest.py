"""Folders as timm writes them, of small models."""

import pytest
import timm
import torch
from timm.models import save_for_hf


def make(config, **more):
    torch.manual_seed(0)
    arguments = {name: value for name, value in config.items() if name != "architecture"}
    model = timm.create_model(config["architecture"], **arguments, **more)
    for parameter in model.parameters():  # layer scales and tokens as made would hide what is done with them
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def source(tmp_path):
    """A folder as timm writes it, head included, and the model in it."""

    def write(config, **more):
        model = make(config, num_classes=5, **more)
        save_for_hf(model, tmp_path / "model", safe_serialization=True)
        return str(tmp_path / "model"), model

    return write

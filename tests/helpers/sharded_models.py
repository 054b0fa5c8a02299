"""Sharded models that load and save slices.

`torchrun` runs this file in each process of `test_slices.py`: `sharded_models.py FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dreamkit.checkpoints.load import load_weights
from dreamkit.distributed import is_main, join, local_region, units, whole
from dreamkit.errors import CheckpointError
from dreamkit.model.model import DreamModel
from saved_models import build_tiny

ROWS = "language_model.model.model.layers.0.mlp.down_proj.weight"  # divided among all processes
SHAPES = ((3,), (1, 3), (3, 1))  # of meshes: replicas, and slices of each


def shard(model: DreamModel, shape: tuple[int, ...] = ()) -> DreamModel:
    """Shard a model over all processes, or over a mesh of this shape: replicas, and slices of each."""
    shape = shape or (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "slices")[-len(shape) :])
    for module in units(model):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def write_whole(model: DreamModel, file: Path) -> None:
    """Write all values of a sharded model into one file."""
    tensors = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    if is_main():
        save_file(tensors, file)


def write_error(folder: Path, name: str, action: Any) -> None:
    """Write the error of `action` in this process into `NAME.RANK.txt`."""
    try:
        action()
    except CheckpointError as error:
        (folder / f"{name}.{dist.get_rank()}.txt").write_text(str(error))


def main(folder: Path) -> None:
    join()
    for shape in SHAPES:
        model = shard(build_tiny(), shape)
        regions = [local_region(each) for each in model.parameters() if isinstance(each, DTensor)]
        assert len(regions) > 50
        is_last = dist.get_rank() == 2  # of four rows, the first two processes have two each
        assert any(0 in region.shape for region in regions) == (is_last and shape != (3, 1))
        load_weights(model, folder / "checkpoint")
        write_whole(model, folder / f"loaded {shape}.safetensors")

    model = shard(build_tiny())
    before = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for name in ("not finite", "cut"):
        write_error(folder, name, lambda name=name: load_weights(model, folder / name))
    assert all(torch.equal(whole(tensor), before[name]) for name, tensor in model.state_dict().items())
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

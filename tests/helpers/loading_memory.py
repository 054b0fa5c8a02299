"""The memory of two processes that load a model and shard it.

`torchrun` runs this file in each process of `test_loading_memory.py`: `loading_memory.py FOLDER`.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from anonymous_memory import Peak
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.distributed import join, local
from dreamkit.plan.memory import total_bytes
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from dreamkit.training import run
from dreamkit_transformers.tokenizers import byte_tokenizer
from layouts import TinyDocuments

CASES = "cases.json"
MIB = 2**20
TINY = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 512}
SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 8192}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32_000}


class LoadedError(Exception):
    """The model is loaded, and its training would begin."""


def write_llama(folder: Path, layers: int, dtype: torch.dtype, pickled: bool = False, **sizes: int) -> int:
    """Write a model with random weights of `dtype` into `folder`; return their bytes."""
    config = LlamaConfig(**sizes, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    state = {name: torch.empty(shape, dtype=dtype).uniform_(-0.1, 0.1) for name, shape in shapes.items()}
    folder.mkdir()
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in state.values())


def settings(language_model: Path, init: str | None = None) -> dict[str, Any]:
    """Return a tiny recipe, with a language model of a folder, whose weights are trained."""
    changes = {
        "model.language_model": {"name": "llama", "pretrained": str(language_model)},
        "data": [{"name": "pairs", "path": "unused"}],
        "train": {"trainable": ["language_model"], "global_batch": 2, "steps": 1},
        "init": init,
    }
    return tiny.recipe(**changes)


def quantized(folder: Path) -> tuple[int, int]:
    """Return the bytes of a model whose language model, `bfloat16` in `folder`, is quantized, and of its building."""

    def built(name: str) -> nn.Module:
        plain = settings(folder / name)
        plain["model"]["language_model"]["quantize"] = "nf4"
        plain["train"]["trainable"] = ["visual_projector"]
        return build(fit(recipe_from_dict(plain, Registry.load(), where="memory"), Registry.load()))

    built("tiny")  # imports what any model needs
    with Peak() as peak:
        model = built("bfloat16")
    return total_bytes((*model.parameters(), *model.buffers())), peak.most - peak.before


def load(out: Path, **sources: Any) -> tuple[int, int]:
    """Load and shard a model as a training does; return the bytes of the slices and of the largest tensor."""
    models: list[nn.Module] = []

    def stop(recipe: Any, model: nn.Module, *_: Any) -> None:
        models.append(model)
        raise LoadedError

    recipe = recipe_from_dict(settings(**sources), Registry.load(), where="memory")
    try:
        with patch.object(run, "make_updates", stop):
            run.train_recipe(recipe, Registry.load(), out, datasets=[TinyDocuments()])
    except LoadedError:
        pass
    (model,) = models
    parameters = [*model.parameters()]
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    return sum(local(each).nbytes for each in parameters), max(each.numel() * 4 for each in parameters)


def main(folder: Path) -> None:
    join()
    results = []
    cases = json.loads((folder / CASES).read_text())
    load(folder / "out", language_model=folder / cases[0]["source"])  # imports what any model needs
    for number, case in enumerate(cases[1:]):
        source = folder / case["source"]
        init = case.get("init") and str(folder / case["init"])
        with Peak() as peak:
            slices, largest = load(folder / f"out {number}", language_model=source, init=init)
        results.append({"growth": peak.most - peak.before, "slices": slices, "largest": largest, **case})
        dist.barrier()
    (folder / f"results.{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

"""Schedulers read values of their own small tensors, on the host. A drawing reads none of the device's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from dreamkit import Condition
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from host_reads import HostReads
from tiny_decoders import seeded, tiny_decoder

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

READS = {
    (StableDiffusion, "ddpm"): (11, 2),
    (StableDiffusion, "ddim"): (6, 0),
    (StableDiffusion, "dpm-solver++"): (0, 0),
    (StableDiffusion, "unipc"): (0, 0),
    (StableDiffusion, "euler"): (2, 0),
    (StableDiffusion, None): (4, 0),
    (SD3, "flow-match-euler"): (0, 0),
    (SD3, "dpm-solver++"): (0, 0),
    (SD3, "unipc"): (0, 0),
}
"""The most values and the most searches (`nonzero`) that a step reads, by decoder and scheduler.

None is a decoder's own PNDM, which Stable Diffusion 1.5 and 2.1 have, and a recipe cannot name.
"""
ONCE = 4
"""The most reads of each kind before the first step."""


def operators_of(cls: Any, name: str | None, steps: int) -> list[str]:
    """Return what a drawing reads and copies, on a device whose values cannot be read: on `meta`, reading raises."""
    own = {"scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True}} if name is None else {}
    decoder = tiny_decoder(cls, **own)
    decoder.denoise = lambda noisy, timesteps, *_: noisy / 2 + timesteps[:, None, None, None]
    context = torch.randn(2, 5, decoder.spec.context_dim, device="meta")
    pooled = (
        None if decoder.spec.pooled_dim is None else torch.randn(2, decoder.spec.pooled_dim, device="meta")
    )
    reads = HostReads()
    with reads:
        *_, last = decoder.draw_steps(
            *(Condition(context, pooled=pooled) for _ in range(2)),
            scheduler=name,
            steps=steps,
            generators=[seeded(number) for number in range(2)],
        )
    assert last.latents.device.type == "meta" and reads.operators > 10 * steps
    return reads.reads


@pytest.mark.parametrize(("cls", "name"), READS)
def test_a_drawing_reads_no_value_of_the_device_and_few_of_the_host(cls: Any, name: str | None) -> None:
    steps = 24
    values, searches = READS[cls, name]
    reads = Counter(operators_of(cls, name, steps))
    assert reads.pop("aten._local_scalar_dense.default", 0) <= ONCE + values * steps
    assert reads.pop("aten.nonzero.default", 0) <= ONCE + searches * steps
    # the timesteps and the noise of two generators, and DDPM's noise in each step
    to_device = reads.pop("aten._to_copy.default cpu -> meta")
    assert to_device <= 3 + (steps if name == "ddpm" else 0) and not reads

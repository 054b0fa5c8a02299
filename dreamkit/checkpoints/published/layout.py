"""Places of a model's parts in a published checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VISION, QUERIES, HEAD = "clip_vision_embedding", "dream_embedding", "stable_diffusion_head"
PROJECTOR = "projector.projector."  # prefix of both projectors, in the state dicts of their plug-ins


@dataclass(frozen=True)
class Drawing:
    """The part of a published checkpoint's layout that depends on its image decoder.

    `projectors` maps parts to their plug-in and the prefix of their tensors. `head` is the file of the head.
    """

    decoder: str
    head: str
    projectors: dict[str, tuple[str, str]]
    special_tokens: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(published: Mapping[str, Any]) -> Drawing:
        """Return the layout for the head's class; its name is not used otherwise."""
        return SDXL if str(published[HEAD].get("_target_")).endswith("XLHead") else SD

    def files(self) -> dict[str, str]:
        """Return the files of the two plug-ins with models, by plug-in."""
        return {VISION: f"{VISION}.bin", HEAD: self.head}


SD = Drawing(
    decoder="stable-diffusion",
    head=f"{HEAD}.bin",
    projectors={"visual_projector": (VISION, PROJECTOR), "condition_projector": (HEAD, PROJECTOR)},
)
SDXL = Drawing(
    decoder="sdxl",
    head="stable_diffusion_xl_head.bin",
    projectors={**SD.projectors, "pooled_projector": (HEAD, f"global_{PROJECTOR}")},
    special_tokens={"dream_patch": "<dream_patch>"},
)

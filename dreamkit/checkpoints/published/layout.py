"""Where a published checkpoint keeps the parts of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VISION, QUERIES, HEAD = "clip_vision_embedding", "dream_embedding", "stable_diffusion_head"
PROJECTOR = "projector.projector."  # of both projectors, in the state dicts of their plug-ins


@dataclass(frozen=True)
class Drawing:
    """What of a published checkpoint depends on the decoder it draws with.

    `projectors` has, by part, the plug-in that holds it and how its tensors start; `head` is the head's file.
    """

    decoder: str
    head: str
    projectors: dict[str, tuple[str, str]]
    special_tokens: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(published: Mapping[str, Any]) -> Drawing:
        """That of the head whose class is named, which decides nothing else."""
        return SDXL if str(published[HEAD].get("_target_")).endswith("XLHead") else SD

    def files(self) -> dict[str, str]:
        """The files of the two plug-ins with models, by plug-in."""
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

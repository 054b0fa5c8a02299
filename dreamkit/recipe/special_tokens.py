"""Names of the special tokens added to a vocabulary. This module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SpecialTokens:
    """Names of the added tokens. The two patches only hold positions, so they may be the same token."""

    dream_start: str = "<dream_start>"
    dream_end: str = "<dream_end>"
    image_start: str = "<im_start>"
    image_patch: str = "<im_patch>"
    image_end: str = "<im_end>"
    dream_patch: str = "<im_patch>"

    def names(self) -> list[str]:
        """Return every distinct token, in a fixed order."""
        return list(dict.fromkeys(getattr(self, f.name) for f in fields(self)))

"""The names of the tokens that are added to a vocabulary. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SpecialTokens:
    """The names of the added tokens in the vocabulary. The two patches are only placeholders and may be one token."""

    dream_start: str = "<dream_start>"
    dream_end: str = "<dream_end>"
    image_start: str = "<im_start>"
    image_patch: str = "<im_patch>"
    image_end: str = "<im_end>"
    dream_patch: str = "<im_patch>"

    def names(self) -> list[str]:
        """Every distinct token, in a fixed order."""
        return list(dict.fromkeys(getattr(self, f.name) for f in fields(self)))

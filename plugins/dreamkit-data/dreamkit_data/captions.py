"""Captions of a pair: one of several, by weight, and the document of image and caption."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dreamkit import Document, DocumentError, Image, Text, describe_value, excerpt

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Direction: TypeAlias = Literal["draw", "read"]


def weight_problems(weights: Mapping[str, float]) -> dict[str, str]:
    """Return what is wrong with weights of captions, by the keys of a recipe's section."""
    if not weights:
        return {"caption": "expected one or more captions with their weights, got none"}
    return {
        f"caption.{name}": f"expected a positive number, got {weight}"
        for name, weight in weights.items()
        if not (weight > 0 and math.isfinite(weight))
    }


def choose_caption(
    captions: Mapping[str, Any], weights: Mapping[str, float], where: str, choices: random.Random | None
) -> str:
    """Return a caption: without `choices` the first one, else one by the weights of those that are not blank.

    A value may be a list of captions, which share its weight.

    Raises:
        DocumentError: all captions are blank, or the chosen one has lone surrogates.
    """
    texts = {name: present for name in weights if (present := _texts(captions[name]))}
    if not texts:
        value = describe_value(captions[next(iter(weights))]) if len(weights) == 1 else "none"
        raise DocumentError(f"{where}: {excerpt(', '.join(weights))}: expected a caption, got {value}")
    if choices is None:
        name, caption = next((name, present[0]) for name, present in texts.items())
    else:
        name = choices.choices(list(texts), [weights[name] for name in texts])[0]
        caption = choices.choice(texts[name])
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{where}: {excerpt(name)}: expected a caption in UTF-8, got '{excerpt(caption)}'"
        ) from error
    return caption


def pair(picture: Picture, caption: str, direction: Direction, name: str) -> Document:
    """Return the document that draws an image from its caption, or reads it and writes the caption."""
    if direction == "draw":
        # Nothing follows the image, so reading it back would train nothing.
        return Document((Text(caption), Image(picture, draw=True, read=False)), name=name)
    return Document((Image(picture), Text(caption)), name=name)


def _texts(value: Any) -> Sequence[str]:
    """Return the captions of a value that are not blank, without the blanks around them."""
    texts = value if isinstance(value, list) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]

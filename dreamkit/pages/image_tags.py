"""Images inside an HTML page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def image_tag(rgb: Picture, alt: str, *, largest: int, small: int, kind: str = "PNG") -> str:
    """Return the tag of an RGB image, which holds the image as a file of this kind.

    A larger image is scaled down to a side of `largest` pixels, in place. A smaller one than `small` is enlarged by a
    whole factor to about this side, and is a PNG file.
    """
    rgb.thumbnail((largest, largest))
    times = max(1, small // max(rgb.size))
    kind = "PNG" if times > 1 else kind
    file = io.BytesIO()
    rgb.save(file, kind, **({} if kind == "PNG" else {"quality": 88}))
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{rgb.width * times}" height="{rgb.height * times}"'
    style = ' class="small"' if times > 1 else ""
    return f'<img{style} {size} alt="{alt}" src="data:image/{kind.lower()};base64,{data}">'

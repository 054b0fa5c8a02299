"""The key of a picture: a hash of all that a part may see of it."""

from __future__ import annotations

import hashlib

from PIL import ExifTags
from PIL.Image import Image as Picture

KEY_BYTES = 16


def picture_key(picture: Picture) -> bytes:
    """The key of a decoded picture: of its mode, size and bytes.

    So are its palette, what of it is transparent, and how it is to be turned: `to_rgb` looks at these as well.
    """
    hashed = hashlib.blake2b(picture.tobytes(), digest_size=KEY_BYTES)
    palette = picture.getpalette(None) if picture.mode in ("P", "PA") else None
    turned = picture.getexif().get(ExifTags.Base.Orientation)
    about = (picture.mode, picture.size, palette, picture.info.get("transparency"), turned)
    hashed.update(repr(about).encode())
    return hashed.digest()

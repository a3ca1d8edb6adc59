"""Decoding by Pillow: every format but JPEG, and JPEG too in a build without libjpeg-turbo."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from placket import _C

if TYPE_CHECKING:
    from PIL import Image


def decode(data: bytes, upright: bool = True) -> NDArray[np.uint8]:
    """Decode a file's bytes to RGB, [height, width, 3] uint8.

    Transparent pixels show white, the ground of catalogue photographs. Grey values of 16 bits keep their
    upper eight. Of an animation the first frame is taken. With ``upright`` the EXIF orientation is applied.

    Raises:
        OSError: they are damaged, of an unknown format, or of more pixels than ``MAX_PIXELS``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _C.MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise OSError(f"image must have at most {_C.MAX_PIXELS} pixels, got {size}")
            image.load()
            rgb = _to_rgb(image)
            return np.asarray(_turned(rgb, _orientation(image)) if upright else rgb)
    except UnidentifiedImageError:
        raise OSError("is not an image of a format that Pillow knows") from None
    except Image.DecompressionBombError:
        raise OSError(f"image must have at most {_C.MAX_PIXELS} pixels, got more than twice that") from None
    except (SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise on damaged data
        raise OSError(f"damaged image: {error}") from None


def _orientation(image: Image.Image) -> int:
    """EXIF's tag of that name, 1 (upright) where there is none or the block does not parse, as in C++."""
    try:
        value = image.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, EOFError, OSError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise OSError("image must have whole-numbered pixels, got floating point (mode F)")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise OSError(f"grey values must fit in 16 bits, got {values.min()} to {values.max()}")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")

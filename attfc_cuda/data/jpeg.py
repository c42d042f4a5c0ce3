"""JPEG through simplejpeg (libjpeg-turbo) where it is installed, faster than Pillow on small faces."""

from __future__ import annotations

import numpy as np

try:
    import simplejpeg
except ImportError:  # Pillow decodes everything
    simplejpeg = None

# The orientation tag lies in an Exif or XMP segment before the pixels; Pillow obeys it, the fast decoder would not.
_HEAD, _TAGGED = 2**16, (b"Exif\x00", b"http://ns.adobe.com/xap/")


def decoder_name() -> str:
    """What decodes an ordinary JPEG here: `simplejpeg` or `Pillow`."""
    return "Pillow" if simplejpeg is None else "simplejpeg"


def decode_fast(data: bytes, image_size: int, max_pixels: int) -> np.ndarray | None:
    """RGB pixels [H, W, 3] uint8 of a plain JPEG at its full size, or None where Pillow is to decide.

    Pillow decides wherever the two could differ: images that it would decode at a fraction of their size, with an
    orientation tag, in CMYK, too large, or not flawless. So what is read does not depend on what is installed.
    """
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return None
    head = data[:_HEAD]
    if any(tag in head for tag in _TAGGED):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        small = min(height, width) < 2 * image_size and 0 < height * width <= max_pixels
        if not small or space not in ("YCbCr", "Gray"):
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None

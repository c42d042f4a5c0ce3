"""How large one stored image may be: one rule for every reader, applied before memory is taken for it.

A file of kilobytes can claim gigabytes (a PNG of zeros, a record in many parts, a number in a header). So each reader
asks here with the size that is claimed, before it reads or decodes. Setting: the environment variables
ATTFC_MAX_IMAGE_BYTES (encoded, of one image) and ATTFC_MAX_IMAGE_PIXELS (decoded, width times height); our choice of
defaults: a face needs a thousandth, a camera's largest picture still passes.
"""

from __future__ import annotations

import os

from attfc_cuda._check import error

DEFAULT_BYTES, DEFAULT_PIXELS = 2**27, 2**25


class TooLarge(ValueError):
    """Something stored that claims more than the limit; the message names the limit's setting."""


def max_image_bytes() -> int:
    """The most bytes that one encoded image may have."""
    return _setting("ATTFC_MAX_IMAGE_BYTES", DEFAULT_BYTES)


def max_image_pixels() -> int:
    """The most pixels that one decoded image may have."""
    return _setting("ATTFC_MAX_IMAGE_PIXELS", DEFAULT_PIXELS)


def require_bytes(count: int) -> None:
    """`TooLarge` for more bytes than one image may have."""
    if count > (most := max_image_bytes()):
        raise TooLarge(f"{count} bytes, more than {most} (ATTFC_MAX_IMAGE_BYTES)")


def require_pixels(width: int, height: int) -> None:
    """`TooLarge` for more pixels than one image may have."""
    if width * height > (most := max_image_pixels()):
        raise TooLarge(f"{width} x {height} pixels, more than {most} (ATTFC_MAX_IMAGE_PIXELS)")


def _setting(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isdecimal() and text.isascii() and len(text) <= 18 and int(text) > 0):
        raise error("ATTFC", name, "be a positive whole number", repr(text))
    return int(text)

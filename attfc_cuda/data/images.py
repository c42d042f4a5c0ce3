"""Reads one image of any common format, mode and size into the model's input: the only decoder in the package."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data.faces import UnreadableImage
from attfc_cuda.data.jpeg import decode_fast
from attfc_cuda.data.limits import TooLarge, max_image_pixels, require_bytes, require_pixels

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError:  # procedural faces work without it
    Image = ImageOps = UnidentifiedImageError = None  # type: ignore[assignment, misc]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".pbm", ".bmp", ".webp", ".tif", ".tiff")

# Pillow goes by the content and would run Ghostscript on PostScript: a stranger's file gets only these decoders.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF")
_RULE = "be a readable image"


def read_image(path: str | os.PathLike, image_size: int) -> torch.Tensor:
    """Read one image file into a model's input pixels, uint8 [3, image_size, image_size], RGB.

    The largest centred square is cut out, so that a face keeps its proportions, and resized (bilinear, antialiased).
    Grayscale becomes three equal channels, 16-bit grayscale keeps its upper 8 bits, transparency shows mid gray, a
    camera's orientation tag is obeyed.

    Args:
        path: The file.
        image_size: Height and width of the result in pixels.

    Returns:
        uint8 tensor [3, image_size, image_size].

    Raises:
        UnreadableImage: Naming the file and the reason, whatever is wrong with it; a file or an image above the limits
            of bytes and pixels included.
        ImportError: Without Pillow.
    """
    _need_pillow("read_image")
    try:
        return _decode(_bytes(path), image_size)
    except Exception as cause:  # on corrupt bytes the decoders raise nearly any type
        raise error("read_image", "path", _RULE, f"{Path(path)} ({_reason(cause)})", kind=UnreadableImage) from cause


def decode_image(data: bytes, image_size: int, where: str, *, fast: bool = True) -> torch.Tensor:
    """As `read_image`, from the bytes of an image file.

    Args:
        data: The file's bytes.
        image_size: Height and width of the result in pixels.
        where: What an error names as the source.
        fast: Decode by simplejpeg what it decodes as Pillow would, where it is installed.

    Returns:
        uint8 tensor [3, image_size, image_size].

    Raises:
        UnreadableImage: Naming `where` and the reason.
        ImportError: Without Pillow.
    """
    _need_pillow("decode_image")
    try:
        return _decode(data, image_size, fast)
    except Exception as cause:
        raise error("decode_image", "data", _RULE, f"{where} ({_reason(cause)})", kind=UnreadableImage) from cause


def decode_picture(path: str | os.PathLike) -> Image.Image:
    """The whole picture of an image file, RGB.

    Raises:
        UnreadableImage: As `read_image`.
    """
    _need_pillow("read_image")
    try:
        return _decode_any(_bytes(path), None)
    except Exception as cause:
        raise error("read_image", "path", _RULE, f"{Path(path)} ({_reason(cause)})", kind=UnreadableImage) from cause


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: Naming the file.
    """
    try:
        return _bytes(path)
    except (OSError, TooLarge) as cause:
        raise error("read_image", "path", _RULE, f"{Path(path)} ({_reason(cause)})", kind=UnreadableImage) from cause


def _bytes(path: str | os.PathLike) -> bytes:
    # Without waiting, or a named pipe would block here for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError("not a regular file")
        require_bytes(info.st_size)
        content = file.read(info.st_size + 1)
        require_bytes(len(content))  # it may have grown
        return content


def _need_pillow(function: str) -> None:
    if Image is None:
        raise ImportError(f"{function}: needs Pillow; pip install pillow")


def _reason(cause: Exception) -> str:
    text = "cannot identify image file" if isinstance(cause, UnidentifiedImageError) else str(cause)
    return f"{type(cause).__name__}: {text}"


def _decode(data: bytes, image_size: int, fast: bool = True) -> torch.Tensor:
    pixels = decode_fast(data, image_size, max_image_pixels()) if fast else None
    if pixels is None:
        picture = _decode_any(data, image_size)
    elif pixels.shape[:2] == (image_size, image_size):
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    else:
        picture = Image.fromarray(pixels)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if (width, height) != (image_size, image_size):
        picture = picture.resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    return torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())


def _decode_any(data: bytes, image_size: int | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        require_pixels(image.width, image.height)
        # A JPEG is decoded at half, a quarter or an eighth of its size where that is still large enough.
        if image_size is not None:
            image.draft(None, (image_size, image_size))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, or 32 holding 16: Pillow's own conversion would clip everything above 255
        values = np.asarray(image)
        upper = np.right_shift(values, 8, dtype=values.dtype)
        return Image.fromarray(np.clip(upper, 0, 255, out=upper).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        picture = Image.new("RGB", image.size, (128, 128, 128))
        picture.paste(layer, mask=layer.getchannel("A"))
        return picture
    return image.convert("RGB")

"""Reads one image file of any common format, mode and size into the model's input: the only decoder in the package."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data.faces import UnreadableImage

try:
    from PIL import Image, ImageOps
except ImportError:  # procedural faces work without it
    Image = ImageOps = None

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".pbm", ".bmp", ".webp", ".tif", ".tiff")

# Pillow goes by the content and would run Ghostscript on PostScript: a stranger's file gets only these decoders.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF")


def read_image(path: str | os.PathLike, image_size: int) -> torch.Tensor:
    """uint8 tensor [3, image_size, image_size], RGB.

    The largest centred square is cut out, so that a face keeps its proportions, and resized (bilinear, antialiased).
    Grayscale becomes three equal channels, 16-bit grayscale keeps its upper 8 bits, transparency shows mid gray, a
    camera's orientation tag is obeyed.
    Errors: `UnreadableImage` naming the file and the reason, whatever is wrong with it; ImportError without Pillow.
    """
    if Image is None:
        raise ImportError("read_image: needs Pillow; pip install pillow")
    try:
        return _decode(path, image_size)
    except Exception as cause:  # on corrupt bytes the decoders raise nearly any type
        reason = f"{Path(path)} ({type(cause).__name__}: {cause})"
        raise error("read_image", "path", "be a readable image", reason, kind=UnreadableImage) from cause


def _decode(path: str | os.PathLike, image_size: int) -> torch.Tensor:
    with Image.open(path, formats=_FORMATS) as image:
        # A JPEG is decoded at half, a quarter or an eighth of its size where that is still large enough.
        image.draft(None, (image_size, image_size))
        ImageOps.exif_transpose(image, in_place=True)
        picture = _to_rgb(image)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if (width, height) != (image_size, image_size):
        picture = picture.resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    return torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, or 32 holding 16: Pillow's own conversion would clip everything above 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        picture = Image.new("RGB", image.size, (128, 128, 128))
        picture.paste(layer, mask=layer.getchannel("A"))
        return picture
    return image.convert("RGB")

"""Decoding: every mode and size becomes RGB of the model's size, and whatever cannot be read says which file it was."""

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import UnreadableImage, read_image

RAMP = np.linspace(0, 255, 64).astype(np.uint8)[None, :].repeat(64, 0)  # dark left, bright right


def test_grayscale_pgm_becomes_three_equal_channels(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.pgm")
    image = read_image(tmp_path / "a.pgm", 64)
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8 and image.is_contiguous()
    assert all(np.array_equal(channel, RAMP) for channel in image.numpy())


def test_sixteen_bit_grayscale_keeps_its_upper_bits(tmp_path):
    wide = RAMP.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + wide.astype(">u2").tobytes())
    for name in ("a.png", "a.pgm"):
        assert np.array_equal(read_image(tmp_path / name, 64)[0].numpy(), RAMP), name


def test_transparency_shows_mid_gray(tmp_path):
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:, :8, 3], pixels[:, 8:, 3] = 255, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 16)
    assert (image[:, :, :8] == 200).all() and (image[:, :, 8:] == 128).all()
    Image.fromarray(pixels).quantize(4).save(tmp_path / "palette.png")
    palette = read_image(tmp_path / "palette.png", 16).int()
    assert (palette[:, :, :8] - 200).abs().max() < 8 and (palette[:, :, 8:] - 128).abs().max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_is_read(tmp_path, mode):
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    Image.fromarray(RAMP).convert("RGB").convert(mode).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}", 32).float()
    assert image.shape == (3, 32, 32) and image[:, :, :8].mean() < 50 < 200 < image[:, :, -8:].mean()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])  # JPEG also takes the reduced decoding
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 200), (231, 57), (640, 480), (7, 7)])
def test_odd_sizes_keep_proportions_of_the_central_square(tmp_path, width, height, suffix):
    side = min(width, height)
    across, down = np.meshgrid(np.arange(width) - width / 2 + 0.5, np.arange(height) - height / 2 + 0.5)
    inside = np.hypot(across, down) < 0.4 * side  # a disc in the middle: it must stay round, whatever the frame
    Image.fromarray((inside * 255).astype(np.uint8)).save(tmp_path / f"a{suffix}", quality=95)
    disc = read_image(tmp_path / f"a{suffix}", 112)[0].numpy() > 127
    assert disc.shape == (112, 112)
    if side >= 7:
        rows, columns = disc.any(1).sum(), disc.any(0).sum()
        # One source pixel, as seen in the result, may fall on either side of the disc's edge at both ends.
        assert abs(rows - columns) <= 2 * 112 / side + 1
        assert abs(rows - 0.8 * 112) <= 2 * 112 / side + 1


def test_orientation_tag_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg", 64).float()
    assert image[:, :, :8].mean() > 200 and image[:, :, -8:].mean() < 50


def _jpeg(tmp_path):
    path = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.jpg", lambda whole: whole[: len(whole) // 2], "truncated"),
        ("empty.jpg", lambda whole: b"", "cannot identify"),
        ("text.png", lambda whole: b"hello, I am no image" * 9, "cannot identify"),
        ("header.jpg", lambda whole: whole[:12], ""),
        # PostScript behind an image's name must not reach an interpreter.
        ("script.jpg", lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "cannot identify"),
        ("bomb.pgm", lambda whole: b"P5 900000 900000 255\n" + b"x" * 64, "DecompressionBomb"),
        ("huge.png", lambda whole: b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + b"\x7f" * 17, ""),
    ],
)
def test_unreadable_file_is_named_with_the_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content(_jpeg(tmp_path)))
    with pytest.raises(UnreadableImage, match=rf"read_image: path must be a readable image, got .*{name} \(.*{reason}"):
        read_image(path, 32)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UnreadableImage, match=f"got {path} "):
            read_image(path, 32)


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("attfc_cuda.data.images.Image", None)
    with pytest.raises(ImportError, match="read_image: needs Pillow; pip install pillow"):
        read_image(tmp_path / "a.jpg", 32)

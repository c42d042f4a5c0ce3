"""`attfc pack` and `attfc data`: what is typed and what comes back; and the two JPEG decoders against each other."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda import cli
from attfc_cuda.data import AttentionLoader, RecordFaces, UnreadableImage, decode_image
from attfc_cuda.data.jpeg import decode_fast, decoder_name


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture
def faces(tmp_path):
    random = np.random.default_rng(0)
    for name in ("ann", "bob", "cy"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            (tmp_path / "faces" / name / f"{number}.jpg").write_bytes(jpeg(pixels))
    (tmp_path / "faces" / "cy" / "3.jpg").write_bytes((tmp_path / "faces" / "ann" / "0.jpg").read_bytes())
    return tmp_path / "faces"


def test_pack(faces, tmp_path, capsys):
    assert cli.main(["pack", str(faces), str(tmp_path / "a.rec")]) == 0
    assert f"{tmp_path / 'a.rec'}: 10 images of 3 identities" in capsys.readouterr().out.replace("\n", "")
    assert RecordFaces(tmp_path / "a.rec", 20).content(0) == (faces / "ann" / "0.jpg").read_bytes()
    assert cli.main(["pack", str(tmp_path / "a.rec"), str(tmp_path / "b.rec"), "--image-size", "16"]) == 0
    assert Image.open(io.BytesIO(RecordFaces(tmp_path / "b.rec", 20).content(0))).size == (16, 16)
    assert cli.main(["pack", f"{faces},{tmp_path / 'a.rec'}", str(tmp_path / "c.rec")]) == 2
    assert "pack: source must be one source of stored images" in capsys.readouterr().err


def test_report(faces, capsys):
    (faces / "bob" / "1.jpg").write_bytes(b"x")
    (faces / "dee").mkdir()
    assert cli.main(["data", "report", str(faces), "--image-size", "16"]) == 0
    shown = capsys.readouterr().out
    assert "FolderFaces: 3 identities, 9 images" in shown
    assert "duplicated images: 1; 1 images stand under more than one identity" in shown
    assert (
        "skipped: 1 identity folders without an image" in shown and "skipped: 1 images that cannot be decoded" in shown
    )
    assert cli.main(["data", "report", str(faces), "--on-bad-image", "raise"]) == 2


def test_bench_prints_images_a_second(faces, capsys):
    arguments = ["data", "bench", str(faces), "--image-size", "16", "--seconds", "0.05", "--workers", "0"]
    assert cli.main([*arguments, "--batch-size", "4"]) == 0
    rates = dict(re.findall(r"^(\S.*?)  +(\d+) images/s$", capsys.readouterr().out, re.MULTILINE))
    expected = {"read", "decode, Pillow", f"decode, {decoder_name()}", "data set"}
    expected |= {"attention loader, 0 workers", "attention loader, 0 workers, probes"}
    assert set(rates) == expected and all(int(rate) > 0 for rate in rates.values())
    assert (
        cli.main(["data", "bench", "procedural:4x3", "--image-size", "16", "--seconds", "0.05", "--workers", "0"]) == 0
    )
    assert "attention loader, 0 workers" in capsys.readouterr().out


def test_bench_makes_the_batches_of_the_settings(monkeypatch, capsys):
    made = []

    class Recorded(AttentionLoader):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("attfc_cuda.data.bench.AttentionLoader", Recorded)
    arguments = ["data", "bench", "procedural:8x12", "--image-size", "16", "--seconds", "0.05", "--workers", "0"]
    arguments += ["--batch-size", "8", "--probes-per-identity", "2", "--gallery-steps", "2"]
    assert cli.main(arguments) == 0
    shown = dict(re.findall(r"^(\S.*?)  +(\d+) images/s$", capsys.readouterr().out, re.MULTILINE))
    images, probes = (int(shown[f"attention loader, 0 workers{of}"]) for of in ("", ", probes"))
    assert (made[0].sampler.probes_per_identity, made[0].sampler.gallery_steps) == (2, 2)
    # 16 probes of a gallery, two images of each of four identities: each is embedded once for four probes.
    assert images / probes == pytest.approx((16 + 8) / 16, abs=2 / probes + 2 / images)


def test_a_rec_trains(faces, tmp_path, capsys):
    assert cli.main(["pack", str(faces), str(tmp_path / "a.rec")]) == 0
    arguments = [
        "--image-size",
        "16",
        "--batch-size",
        "4",
        "--embedding-dim",
        "16",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    arguments += ["--data", str(tmp_path / "a.rec"), "--steps", "2", "--no-tensorboard", "--augment", "flip,crop"]
    assert cli.main(["train", *arguments, "--run", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert (
        "RecordFaces: 3 identities, 10 images" in shown and "duplicated images: 1" in shown and "done: 2 steps" in shown
    )


@pytest.fixture
def fast():
    if decoder_name() == "Pillow":
        pytest.skip("simplejpeg is not installed")


def both(data, size):
    return [decode_image(data, size, "here", fast=fast) for fast in (True, False)]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("shape", [(112, 112), (113, 97), (200, 150), (16, 16), (250, 250)])
def test_the_fast_decoder_gives_pillows_pixels(fast, shape, subsampling):
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))
    data = jpeg(pixels, subsampling=subsampling, quality=90)
    assert (decode_fast(data, 112, 2**20) is None) == (shape == (250, 250))  # Pillow decodes that one at half its size
    # Both are libjpeg-turbo with the same settings; releases differ by a unit in the last place of a pixel.
    assert (both(data, 112)[0].int() - both(data, 112)[1].int()).abs().max() <= 1


def test_what_the_fast_decoder_leaves_to_pillow(fast):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned, gray = jpeg(ramp, exif=exif), jpeg(ramp[..., 0])
    stream = io.BytesIO()
    Image.fromarray(ramp).convert("CMYK").save(stream, "JPEG")
    for data in (turned, stream.getvalue(), b"", b"\xff\xd8\xff", jpeg(ramp)[:-40]):
        assert decode_fast(data, 64, 2**20) is None
    assert decode_fast(jpeg(ramp), 64, 64 * 64 - 1) is None and decode_fast(gray, 64, 64 * 64) is not None
    for data in (turned, gray, stream.getvalue()):
        assert torch.equal(*both(data, 64))
    assert decode_image(turned, 64, "here")[0, 0, 0] > 200
    with pytest.raises(UnreadableImage, match=r"decode_image: data must be a readable image, got here \(.*truncated"):
        decode_image(jpeg(ramp)[:-40], 64, "here")


def test_an_image_of_too_many_pixels_is_refused():
    header = b"P5 9000 9000 255\n"
    with pytest.raises(UnreadableImage, match=r"got here \(TooLarge: 9000 x 9000 pixels, more than 33554432 "):
        decode_image(header + bytes(100), 64, "here")

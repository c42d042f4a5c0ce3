"""Drawn faces as a .rec, and that worker processes change nothing of what is packed."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc_cuda import cli
from attfc_cuda.data import FolderFaces, ProceduralFaces, RecordFaces, UnreadableImage, build_dataset, pack


def decoded_as_jpeg(picture):
    stream = io.BytesIO()
    Image.fromarray(picture.numpy().transpose(1, 2, 0)).save(stream, "JPEG", quality=95)
    return np.asarray(Image.open(stream)).transpose(2, 0, 1)


def test_drawn_faces_come_back_as_their_jpegs(tmp_path):
    drawn = ProceduralFaces(5, 3, 24, seed=2, first_identity=7, hard=True)
    text = pack(drawn, tmp_path / "drawn.rec")
    assert text.startswith(f"{tmp_path / 'drawn.rec'}: 15 images of 5 identities")
    faces = RecordFaces(tmp_path / "drawn.rec", 24, on_bad_image="raise")
    assert faces.labels.tolist() == drawn.labels.tolist()
    for index in range(len(drawn)):
        np.testing.assert_array_equal(faces[index].numpy(), decoded_as_jpeg(drawn[index]))
    pack(drawn, tmp_path / "same.rec", image_size=24)
    assert (tmp_path / "same.rec").read_bytes() == (tmp_path / "drawn.rec").read_bytes()
    with pytest.raises(ValueError, match=r"^pack: image_size must be the drawn faces' own, 24, or None, got 32$"):
        pack(drawn, tmp_path / "other.rec", image_size=32)
    with pytest.raises(TypeError, match=r"^pack: dataset must hold stored images or drawn faces, got int$"):
        pack(3, tmp_path / "other.rec")
    with pytest.raises(ValueError, match=r"^pack: workers must be at least 0, got -1$"):
        pack(drawn, tmp_path / "other.rec", workers=-1)
    assert not (tmp_path / "other.rec").exists()


@pytest.fixture
def folder(tmp_path):
    for identity in range(50):  # more images than a worker takes in one turn
        place = tmp_path / "faces" / f"name{identity:02d}"
        place.mkdir(parents=True)
        for image in range(3):
            shade = np.full((16, 16, 3), 4 * identity + image, np.uint8)
            Image.fromarray(shade).save(place / f"{image}.png")
    (tmp_path / "faces" / "name20" / "1.png").write_bytes(b"nothing")
    return tmp_path / "faces"


@pytest.mark.parametrize("image_size", [None, 12])
def test_workers_write_the_same_file(folder, tmp_path, image_size):
    alone = pack(FolderFaces(folder, 16), tmp_path / "a.rec", image_size=image_size)
    shared = pack(FolderFaces(folder, 16), tmp_path / "b.rec", image_size=image_size, workers=2)
    assert alone.replace("a.rec", "b.rec") == shared and "149 images" in shared and "skipped: 1 images" in shared
    for suffix in (".rec", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_unreadable_image_found_by_a_worker_is_raised_and_leaves_nothing(folder, tmp_path):
    faces = FolderFaces(folder, 16, on_bad_image="raise")
    with pytest.raises(UnreadableImage, match=r"name20/1\.png"):
        pack(faces, tmp_path / "out" / "a.rec", workers=2)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists child processes through Linux's /proc")
def test_workers_end_with_a_packing_that_was_killed(tmp_path):
    script = (
        "from attfc_cuda.data import ProceduralFaces, pack\n"
        f"pack(ProceduralFaces(10000, 9, 64), {str(tmp_path / 'a.rec')!r}, workers=2)"
    )
    packing = subprocess.Popen([sys.executable, "-c", script])
    children = Path(f"/proc/{packing.pid}/task/{packing.pid}/children")

    def eventually(holds):
        until = time.monotonic() + 100
        while not holds():
            assert time.monotonic() < until and packing.poll() in (None, -signal.SIGKILL)
            time.sleep(0.05)

    try:  # the first images are written: both have begun, and what they draw next fills their pipes
        eventually(lambda: any(part.stat().st_size for part in tmp_path.glob(".a.rec.*")))
        workers = [int(pid) for pid in children.read_text().split()]
        assert len(workers) == 2
    finally:
        packing.kill()
    packing.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in workers))


def test_command_draws_with_its_seed(tmp_path, capsys):
    spec = "procedural:4x2@8:hard:label-noise=0.5"
    assert cli.main(["pack", spec, str(tmp_path / "a.rec"), "--image-size", "16", "--seed", "9"]) == 0
    assert "8 images of 4 identities" in capsys.readouterr().out
    faces, drawn = RecordFaces(tmp_path / "a.rec", 16), build_dataset(spec, 16, seed=9)
    for index in range(len(drawn)):
        np.testing.assert_array_equal(faces[index].numpy(), decoded_as_jpeg(drawn[index]))

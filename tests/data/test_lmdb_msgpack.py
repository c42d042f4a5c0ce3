"""LMDB databases of msgpack values, written by lmdb and msgpack themselves."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data import UnreadableImage, build_dataset

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed")


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


FORMS = {
    "image and label": (lambda image, label, name: [image, label], False),
    "label and image": (lambda image, label, name: (label, image), False),
    "image, label and size": (lambda image, label, name: [image, label, 12, 12], False),
    "map": (lambda image, label, name: {"image": image, "size": 12, "label": label}, False),
    "names": (lambda image, label, name: [image, name], True),
    "map of names": (lambda image, label, name: {"id": name, "jpg": image, "path": "a/b.png"}, True),
}
FACES = [(10, 7, "zoe"), (20, 3, "al"), (30, 7, "zoe")]


def database(folder: Path, values: list[bytes], **others: bytes) -> Path:
    with lmdb.open(str(folder), map_size=2**22) as env, env.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(b"%d" % number, value)
        for key, value in others.items():
            transaction.put(key.encode(), value)
    return folder


@pytest.mark.parametrize(("form", "named"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("old", [False, True], ids=["", "before bytes and text were told apart"])
def test_images_and_labels_are_found(form: Any, named: bool, old: bool, tmp_path: Path) -> None:
    values = [msgpack.packb(form(png(shade), label, name), use_bin_type=not old) for shade, label, name in FACES]
    counts = {"__len__": msgpack.packb(3), "__keys__": msgpack.packb([b"0", b"1", b"2"])}
    faces = build_dataset(str(database(tmp_path / "db", values, **counts)), 12, on_bad_image="raise")
    assert list(faces.identities) == (["al", "zoe"] if named else ["3", "7"]) and faces.labels.tolist() == [1, 0, 1]
    assert [int(faces[k][0, 0, 0]) for k in (2, 0, 1)] == [30, 10, 20]


def test_what_is_no_image_with_a_label_is_counted(tmp_path: Path) -> None:
    good = msgpack.packb([png(10), 3])
    values = [good, good[:-9], msgpack.packb([png(10)]), msgpack.packb([png(10), -1]), msgpack.packb(7), good]
    faces = build_dataset(str(database(tmp_path / "db", values)), 12)
    assert len(faces) == 2 and "4 values that are not an image and a label" in faces.report()
    with pytest.raises(ValueError, match="LmdbFaces: path must hold at least one image"):
        build_dataset(str(database(tmp_path / "none", values[2:4])), 12)


def test_a_value_that_is_no_image_names_its_key(tmp_path: Path) -> None:
    faces = build_dataset(str(database(tmp_path / "db", [msgpack.packb([b"no image at all", 3])])), 12)
    with pytest.raises(UnreadableImage, match="db, key '0'"):
        faces[0]

"""Tar shards by the writers that people have, webdataset and GNU tar: nothing vanishes without a word."""

import io
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data import TarFaces, UnreadableImage, build_dataset
from attfc_cuda.data.sources import tar_members
from attfc_cuda.data.sources.checked_file import CheckedFile


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def values(dataset):
    return [int(dataset[i].float().mean()) for i in range(len(dataset))]


def by_identity(dataset):
    shades = values(dataset)
    return {name: [shades[i] for i in dataset.images_of(k)] for k, name in enumerate(dataset.identities)}


def raw(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def write(tmp_path):
    """Write samples with webdataset's own writer."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")

    def written(*samples, name="a.tar", **options):
        with webdataset.TarWriter(str(tmp_path / name), **options) as writer:
            for sample in samples:
                writer.write(sample)
        return tmp_path / name

    return written


@pytest.fixture
def gnu_tar(tmp_path):
    """Pack a folder with GNU tar."""
    if (
        shutil.which("tar") is None
        or "GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout
    ):
        pytest.skip("GNU tar is not installed")

    def packed(folder, *options, name="a.tar"):
        subprocess.run(["tar", "--sort=name", *options, "-cf", tmp_path / name, "-C", folder, "."], check=True)
        return tmp_path / name

    return packed


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def test_cls_and_json_that_agree_or_not(write):
    agreeing = [{"__key__": f"s{k}", "png": png(k + 1), "cls": k % 3, "json": {"label": k % 3}} for k in range(6)]
    assert by_identity(TarFaces(write(*agreeing), 16)) == {"0": [1, 4], "1": [2, 5], "2": [3, 6]}
    other = write(*[{**sample, "json": {"label": 9}} for sample in agreeing])
    rule = r"name one label in the .cls and the .json of a sample, got 0 in s0.cls and 9 in s0.json of .*a.tar"
    for on_bad_image in ("skip", "raise"):
        with pytest.raises(ValueError, match=rf"TarFaces: shards must {rule}; TarFaces\(label_field=\"cls\"\) or"):
            TarFaces(other, 16, on_bad_image=on_bad_image)
    assert by_identity(TarFaces(other, 16, label_field="cls")) == {"0": [1, 4], "1": [2, 5], "2": [3, 6]}
    assert by_identity(build_dataset(str(other), 16, label_field="json")) == {"9": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(ValueError, match="label_field must be one of auto, cls, json, folder, got 'txt'"):
        TarFaces(other, 16, label_field="txt")


def test_a_json_without_a_label_leaves_the_folder(write):
    samples = [{"__key__": f"{who}/{k}", "png": png(k), "json": {"age": k}} for who, k in (("ann", 1), ("ben", 2))]
    assert by_identity(TarFaces(write(*samples), 16)) == {"ann": [1], "ben": [2]}
    samples = [{**sample, "json": [1, 2]} for sample in samples]
    assert by_identity(TarFaces(write(*samples), 16)) == {"ann": [1], "ben": [2]}


def test_several_images_of_one_sample(write):
    pairs = [{"__key__": f"ann/{k}", "left.png": png(k), "right.png": png(k + 10)} for k in (1, 2)]
    assert by_identity(TarFaces(write(*pairs), 16)) == {"ann": [1, 11, 2, 12]}
    beside = [{"__key__": f"ann/{k}", "jpg": png(k), "mask.png": png(90), "png": png(80)} for k in (1, 2)]
    faces = TarFaces(write(*beside), 16)
    assert by_identity(faces) == {"ann": [1, 2]}
    assert "skipped: 4 further images of a sample, e.g. ann/1.png of" in faces.report().replace("mask.png", "png")


def test_names_with_dots(gnu_tar, tmp_path):
    for k, name in enumerate(("A/A.B_0001", "A/A.B_0002", "C/C_0001", "D/D.E.F_1"), start=1):
        save(tmp_path / "faces" / f"{name}.png", k)
    assert by_identity(TarFaces(gnu_tar(tmp_path / "faces"), 16)) == {"A": [1, 2], "C": [3], "D": [4]}


@pytest.mark.parametrize("options", [[], ["--format=pax"], ["--format=ustar"], ["--format=v7"]])
def test_links_are_read_as_what_they_lead_to(gnu_tar, tmp_path, options):
    save(tmp_path / "faces" / "ann" / "1.png", 1)
    save(tmp_path / "faces" / "ben" / "1.png", 2)
    for who, name, target in (("ann", "2.png", "1.png"), ("ann", "3.png", "2.png"), ("carl", "1.png", "../ben/1.png")):
        (tmp_path / "faces" / who).mkdir(exist_ok=True)
        (tmp_path / "faces" / who / name).symlink_to(target)
    os.link(tmp_path / "faces" / "ben" / "1.png", tmp_path / "faces" / "ben" / "2.png")
    os.link(tmp_path / "faces" / "ben" / "1.png", tmp_path / "faces" / "ann" / "4.png")
    (tmp_path / "faces" / "ben" / "9.png").symlink_to("/nowhere/at/all.png")
    (tmp_path / "faces" / "ben" / "8.png").symlink_to("8.png")
    faces = TarFaces(gnu_tar(tmp_path / "faces", *options), 16)
    assert by_identity(faces) == {"ann": [1, 1, 1, 2], "ben": [2, 2], "carl": [2]}
    assert "skipped: 2 links that lead to no file of their shard, e.g. ./ben/8.png of" in faces.report()


def test_long_and_foreign_names(gnu_tar, tmp_path):
    for k, name in enumerate(("x" * 150, "Zoë 李", "y" * 240), start=1):
        save(tmp_path / "faces" / name / f"{k}.png", k)
    for options in ([], ["--format=pax"]):
        faces = TarFaces(gnu_tar(tmp_path / "faces", *options), 16)
        assert by_identity(faces) == {"Zoë 李": [2], "x" * 150: [1], "y" * 240: [3]}


def test_sparse_files_are_counted(gnu_tar, tmp_path):
    save(tmp_path / "faces" / "ann" / "1.png", 1)
    hole = tmp_path / "faces" / "ann" / "2.png"
    hole.write_bytes(png(2))
    os.truncate(hole, 2**20)
    faces = TarFaces(gnu_tar(tmp_path / "faces", "--sparse"), 16)
    assert by_identity(faces) == {"ann": [1]} and "skipped: 1 sparse files, e.g." in faces.report()


def test_suffixes_in_capitals_and_leading_zeros(tmp_path):
    path = raw(tmp_path / "a.tar", [("1.PNG", png(1)), ("1.CLS", b"007"), ("2.png", png(2)), ("2.cls", b" 12\n")])
    assert by_identity(TarFaces(path, 16)) == {"7": [1], "12": [2]}
    path = raw(tmp_path / "a.tar", [("1.PNG", png(1)), ("1.JSON", json.dumps({"label": "007"}).encode())])
    assert by_identity(TarFaces(path, 16)) == {"7": [1]}
    path = raw(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"-1"), ("2.png", png(2)), ("2.cls", b"0")])
    faces = TarFaces(path, 16)
    assert by_identity(faces) == {"0": [2]} and "skipped: 1 samples whose label cannot be read" in faces.report()


def test_apple_double_files_are_no_samples(tmp_path):
    double = b"\0\5\x16\7" * 20
    members = [("ann/1.png", png(1)), ("ann/._1.png", double), ("ann/._2.png", double), ("ann/2.png", png(2))]
    members[1:1] = [("__MACOSX/ann/._1.png", double), (".ipynb_checkpoints/1.png", png(9))]
    faces = TarFaces(raw(tmp_path / "a.tar", members), 16)
    assert by_identity(faces) == {"ann": [1, 2]}
    assert "skipped: 4 hidden files and files of tools, e.g. __MACOSX/ann/._1.png of" in faces.report()


def test_keys_that_repeat_are_samples_of_their_own(tmp_path):
    members = []
    for number in range(1, 6):
        for person in range(12):
            members += [(f"{number:03d}.png", png(10 * number + person)), (f"{number:03d}.cls", b"%d" % person)]
    faces = TarFaces(raw(tmp_path / "a.tar", members), 16)
    assert by_identity(faces) == {f"{p}": [10 * n + p for n in range(1, 6)] for p in range(12)}


def test_fields_of_one_key_that_cannot_be_told_apart_are_named(tmp_path):
    path = raw(tmp_path / "a.tar", [("1.png", png(1)), ("1.png", png(2)), ("1.cls", b"0"), ("1.cls", b"1")])
    faces = TarFaces(path, 16)
    assert by_identity(faces) == {"0": [2]} and "skipped: 1 images without an identity" in faces.report()
    assert "skipped: 1 labels without an image" in faces.report()
    with pytest.raises(
        ValueError, match=rf"shards must be intact, got {path}: byte 512 must give an identity to 1.png"
    ):
        TarFaces(path, 16, on_bad_image="raise")


def test_members_apart_are_refused_with_the_way_to_sort_them(tmp_path):
    path = raw(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2)), ("a.cls", b"0"), ("b.cls", b"1")])
    with pytest.raises(ValueError, match="at least one image with an identity.*labels must lie beside their images: "
                       "sort the shard, as in tar --sort=name"):  # fmt: skip
        TarFaces(path, 16)


def test_a_shard_that_changes_is_noticed_when_an_image_is_read(tmp_path):
    path = raw(tmp_path / "a.tar", [("ann/1.png", png(1)), ("ann/2.png", png(2))])
    faces = TarFaces(path, 16)
    with open(path, "r+b") as file:
        file.write(bytes(512))
    with pytest.raises(UnreadableImage, match=rf"TarFaces: {path}: byte 0 must be a tar header, got other bytes"):
        faces[0]
    assert int(faces[1].float().mean()) == 2
    os.truncate(path, 600)
    with pytest.raises(UnreadableImage, match=rf"TarFaces: {path}: byte .* got a file that ends at byte 600"):
        faces[1]


def test_the_walk_agrees_with_pythons_tarfile(gnu_tar, write, tmp_path):
    save(tmp_path / "faces" / "ann" / "1.png", 1)
    save(tmp_path / "faces" / ("z" * 120) / "1.png", 2)
    paths = [gnu_tar(tmp_path / "faces", "--format=" + kind, name=kind) for kind in ("gnu", "pax", "posix", "oldgnu")]
    paths.append(write({"__key__": "s", "png": png(3), "cls": 4}, name="w.tar"))
    for path in paths:
        with tarfile.open(path) as archive:
            expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
        assert [(m.name, m.start, m.size) for m in tar_members.walk(CheckedFile(path))] == expected != []

"""Sources are known by what lies there, whatever they are called; shards come as folders, patterns and braces."""

import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_recordio import OtherWriter

from attfc_cuda.data import (
    AttentionLoader,
    ConcatFaces,
    FolderFaces,
    ListFaces,
    LmdbFaces,
    ParquetFaces,
    RecordFaces,
    TarFaces,
    UnreadableImage,
    build_dataset,
)
from attfc_cuda.data.sources import tar_gz
from attfc_cuda.data.sources.kinds import expand_braces, split_sources


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, shades: list[int], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for shade in shades:
            info = tarfile.TarInfo(f"person {shade // 100}/{shade}.png")
            content = png(shade)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shades(spec: object, kind: type) -> list[int]:
    faces = build_dataset(str(spec), 12, on_bad_image="raise")
    assert type(faces) is kind
    return [int(faces[k][0, 0, 0]) for k in range(len(faces))]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """InsightFace's folder: train.rec, train.idx, a verification set and a property file."""
    folder = tmp_path / "ms1m"
    folder.mkdir()
    writer = OtherWriter()
    for key, (label, shade) in enumerate(((5, 10), (7, 20), (5, 30))):
        writer.face(key, label, png(shade))
    writer.save(folder)
    (folder / "lfw.bin").write_bytes(b"\x80\x02.")
    (folder / "property").write_text("2,112,112")
    return folder


def test_a_folder_with_a_train_rec_is_that_file(record: Path) -> None:
    assert shades(record, RecordFaces) == [10, 20, 30]
    (record / "train.rec").rename(record / "faces.rec")
    (record / "train.idx").rename(record / "faces.idx")
    assert shades(record, RecordFaces) == [10, 20, 30]


def test_shards_by_folder_wild_card_and_braces(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, some in enumerate(([10, 20], [110], [120])):
        shard(folder / f"train-{number:02d}.tar", some)
    (folder / "readme.txt").write_text("of the shards")
    everything = [10, 20, 110, 120]
    assert shades(folder, TarFaces) == everything
    assert shades(folder / "train-*.tar", TarFaces) == everything
    assert shades(folder / "train-{00..02}.tar", TarFaces) == everything
    assert shades(folder / "train-{00,02}.tar", TarFaces) == [10, 20, 120]
    assert shades(folder / "train-0[12].tar", TarFaces) == [110, 120]
    both = build_dataset(f"{folder / 'train-{00,01}.tar'},{folder / 'train-02.tar'}", 12)
    assert isinstance(both, ConcatFaces) and len(both) == 4 and len(both.identities) == 3
    with pytest.raises(
        ValueError, match=r"build_dataset: spec must name files that exist, got no match of .*/none-\*.tar"
    ):
        build_dataset(str(folder / "none-*.tar"), 12)
    (folder / "anna").mkdir()  # beside identities, shards are only counted
    (folder / "anna" / "1.png").write_bytes(png(7))
    assert shades(folder, FolderFaces) == [7]


def test_a_wild_card_may_name_several_folders(tmp_path: Path) -> None:
    for part, shade in (("a", 1), ("b", 2)):
        (tmp_path / f"part-{part}" / "anna").mkdir(parents=True)
        (tmp_path / f"part-{part}" / "anna" / "1.png").write_bytes(png(shade))
    assert shades(tmp_path / "part-*", FolderFaces) == [1, 2]


def test_compressed_shards_are_unpacked_once_beside_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    shard(folder / "a.tar.gz", [10], "w:gz")
    shard(folder / "b.tgz", [120], "w:gz")
    assert shades(folder, TarFaces) == [10, 120]
    assert capsys.readouterr().err.count("unpacking") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.tar.gz", "a.tar.gz.attfc_unpacked", "a.tar.gz.attfc_unpacked.attfc_index",
        "b.tgz", "b.tgz.attfc_unpacked", "b.tgz.attfc_unpacked.attfc_index",
    ]  # fmt: skip
    for spec in (folder, folder / "*", folder / "{a.tar.gz,b.tgz}"):
        assert shades(spec, TarFaces) == [10, 120]
    assert shades(folder / "a.tar.gz", TarFaces) == [10]
    assert "unpacking" not in capsys.readouterr().err
    for time in (2**61, 2**60):  # another one, newer or older
        shard(folder / "a.tar.gz", [time >> 56], "w:gz")
        os.utime(folder / "a.tar.gz", ns=(time, time))
        assert shades(folder / "a.tar.gz", TarFaces) == [time >> 56]


def test_a_tar_of_the_users_own_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for packed in ("a.tgz", "a.tar.gz"):
        shard(tmp_path / packed, [10], "w:gz")
    own = shard(tmp_path / "a.tar", [20]).read_bytes()
    for time in (2**60, 2**61):  # older and newer than the compressed ones
        for packed in ("a.tgz", "a.tar.gz"):
            os.utime(tmp_path / packed, ns=(2**60 + 2**59, 2**60 + 2**59))
            os.utime(tmp_path / "a.tar", ns=(time, time))
            assert shades(tmp_path / packed, TarFaces) == [10]
            assert (tmp_path / "a.tar").read_bytes() == own
    assert capsys.readouterr().err.count("unpacking") == 2


def test_of_a_tar_and_its_compressed_twin_the_newer_tar_counts(tmp_path: Path) -> None:
    """As gunzip leaves it, which gives it the same time. An older one may be another version, and nobody guesses."""
    shard(tmp_path / "a.tar", [10])
    shard(tmp_path / "a.tar.gz", [20], "w:gz")
    for time in (2**60, 2**60 + 2**40):
        os.utime(tmp_path / "a.tar", ns=(time, time))
        os.utime(tmp_path / "a.tar.gz", ns=(2**60, 2**60))
        for spec in (tmp_path, tmp_path / "a.*"):
            assert shades(spec, TarFaces) == [10]
    assert shades(tmp_path / "a.tar.gz", TarFaces) == [20]
    os.utime(tmp_path / "a.tar", ns=(2**60, 2**60))
    assert shades(tmp_path / "a.tar.gz", TarFaces) == [20]  # its own unpacked one, where there is one
    (tmp_path / "a.tar.gz.attfc_unpacked").unlink()
    assert shades(tmp_path / "a.tar.gz", TarFaces) == [10]
    os.utime(tmp_path / "a.tar", ns=(2**59, 2**59))
    for spec in (tmp_path, tmp_path / "a.*"):
        with pytest.raises(ValueError, match=r"no other version lies there, got .*a.tar that is older than a.tar.gz"):
            build_dataset(str(spec), 12)
    assert shades(tmp_path / "*.tar", TarFaces) == [10] and shades(tmp_path / "*gz", TarFaces) == [20]


@pytest.mark.parametrize("names", [
    ("train-0.tar", "test-0.tar"), ("faces-train-01.tar", "faces-val-01.tar"), ("train.tar", "dev.tar.gz"),
    ("training0.tar", "validation0.tar"),
], ids=" ".join)  # fmt: skip
def test_shards_of_two_splits_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, shade in zip(names, (10, 20), strict=True):
        shard(tmp_path / name, [shade], "w:gz" if name.endswith("gz") else "w")
    start = re.match(r".*(train|training)", names[0])[0]
    words = rf"files of one split, got .*\* and .*\* in {tmp_path}.*; name those to read, '{tmp_path}/{start}"
    for spec in (tmp_path, tmp_path / "*"):
        with pytest.raises(ValueError, match=words):
            build_dataset(str(spec), 12)
    assert shades(tmp_path / f"{start}*", TarFaces) == [10]
    assert len(build_dataset(f"{tmp_path / names[0]},{tmp_path / names[1]}", 12)) == 2


def test_names_that_only_look_like_splits_are_read_together(tmp_path: Path) -> None:
    for name, shade in (("train-0.tar", 10), ("train_1.tar", 20), ("valentina.tar", 30), ("contest.tar", 40)):
        shard(tmp_path / name, [shade])
    assert sorted(shades(tmp_path, TarFaces)) == [10, 20, 30, 40]


@pytest.mark.parametrize("name", ["@eaDir", ".snapshot", "#recycle", "lost+found", "__MACOSX"])
def test_folders_of_tools_beside_shards_and_records(tmp_path: Path, record: Path, name: str) -> None:
    folder = tmp_path / "shards"
    for place in (folder, record):
        (place / name / "a.tar").mkdir(parents=True)
        (place / name / "a.tar" / "1.png").write_bytes(png(9))
    shard(folder / "a.tar", [10])
    (folder / "._a.tar").write_bytes(b"of a file manager")
    (record / "train.rec").rename(record / "faces.rec")
    (record / "train.idx").rename(record / "faces.idx")
    (record / "._faces.rec").write_bytes(b"of a file manager")
    assert shades(folder, TarFaces) == [10]
    assert shades(record, RecordFaces) == [10, 20, 30]


def test_a_stray_rec_beside_identities_is_named(record: Path) -> None:
    (record / "anna").mkdir()
    (record / "anna" / "1.png").write_bytes(png(7))
    assert shades(record, RecordFaces) == [10, 20, 30]  # a train.rec is what the folder is for
    for suffix in ("rec", "idx"):
        (record / f"train.{suffix}").rename(record / f"faces.{suffix}")
    words = r"name a folder with one data set, got faces.rec beside folders such as anna, .*; name the file, .*/faces"
    with pytest.raises(ValueError, match=words):
        build_dataset(str(record), 12)
    assert shades(record / "faces.rec", RecordFaces) == [10, 20, 30]
    (record / "faces.rec").rename(record.parent / "faces.rec")
    assert shades(record, FolderFaces) == [7]


@pytest.fixture
def few_files() -> Iterator[int]:
    """How many files this process may open, for a while: few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A quarter of them for kept files; a loader's queues, and a file for each tensor on its way, take some fifty more.
    few = len(os.listdir("/proc/self/fd")) + 120 if os.path.isdir("/proc/self/fd") else 192
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_a_process_may_open(tmp_path: Path, few_files: int) -> None:
    count = few_files + 10
    for number in range(count):
        shard(tmp_path / f"{number:04d}.tar", [number % 100, 100 + number % 100])
    faces = build_dataset(str(tmp_path), 12)
    assert len(faces) == 2 * count
    for number in (*range(count), *range(count)[::-7]):
        assert int(faces[2 * number][0, 0, 0]) == number % 100
    assert len(os.listdir(tmp_path)) == 2 * count  # an index each: writing them needs files too
    batches = [[batch.probe.sum() for batch in AttentionLoader(faces, 16, 1, num_workers=k)] for k in (0, 2)]
    assert len(batches[0]) > 4 and all(map(torch.equal, *batches))
    (tmp_path / "0000.tar").unlink()
    shard(tmp_path / "0000.tar", [50, 150, 160] * 10)  # another file in its place
    for number in range(1, count):  # until the one that is gone is not kept open any more
        faces[2 * number]
    # A file system may give it the number of the one that is gone; then what it holds tells.
    words = "(of the file that was opened|the header that was indexed), got another"
    with pytest.raises(UnreadableImage, match=f"0000.tar: byte 0 must be {words}"):
        faces[0]


def test_more_parquet_files_than_a_process_may_open(tmp_path: Path, few_files: int) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    count = few_files + 10
    for number in range(count):
        table = arrow.table({"image": [png(number % 250)], "label": [number % 5]})
        parquet.write_table(table, tmp_path / f"{number:04d}.parquet")
    faces = build_dataset(str(tmp_path), 12)
    for number in (*range(count), *range(count)[::-7]):
        assert int(faces[number][0, 0, 0]) == number % 250


def test_damaged_compressed_shards_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard(tmp_path / "a.tar.gz", [10, 20], "w:gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"TarFaces: shards must be whole gzip files .*a.tar.gz .*gunzip -k"):
        build_dataset(str(tmp_path / "a.tar.gz"), 12)
    monkeypatch.setattr(tar_gz, "_SPARE_BYTES", 0)
    monkeypatch.setattr(tar_gz, "_LARGEST_RATIO", 3)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(ValueError, match="it unpacks to more than"):
        build_dataset(str(tmp_path / "a.tar.gz"), 12)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_disk_that_is_full_while_a_shard_is_unpacked_leaves_nothing(tmp_path: Path) -> None:
    packed = shard(tmp_path / "a.tar.gz", [10, 20], "w:gz")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a write beyond it fails as on a full disk
        with pytest.raises(ValueError, match=r"that can be written, got .*a.tar.gz .*File too large.*gunzip"):
            build_dataset(str(packed), 12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    assert shades(packed, TarFaces) == [10, 20]


def test_who_opens_a_shard_while_it_is_unpacked_sees_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has the same process's number, as on another machine that shares the disk."""
    packed, replace, inner = shard(tmp_path / "a.tar.gz", [10, 20], "w:gz"), os.replace, []

    def replacing(part: Path, target: Path) -> None:
        if not inner:
            inner.append(None)
            inner[0] = shades(packed, TarFaces)  # the first one's file is whole, but not yet in its place
        replace(part, target)

    monkeypatch.setattr(os, "replace", replacing)
    assert shades(packed, TarFaces) == [10, 20] and inner == [[10, 20]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.tar.gz", "a.tar.gz.attfc_unpacked", "a.tar.gz.attfc_unpacked.attfc_index",
    ]  # fmt: skip


def test_files_are_known_whatever_they_are_called(tmp_path: Path, record: Path) -> None:
    shard(tmp_path / "old", [10, 20])
    assert shades(tmp_path / "old", TarFaces) == [10, 20]
    shard(tmp_path / "packed", [30], "w:gz")
    assert shades(tmp_path / "packed", TarFaces) == [30]
    shutil.copy(record / "train.rec", tmp_path / "records.bin")
    assert sorted(shades(tmp_path / "records.bin", RecordFaces)) == [10, 20, 30]
    (tmp_path / "x.png").write_bytes(png(4))
    (tmp_path / "names").write_text("x.png 3\n")
    assert shades(tmp_path / "names", ListFaces) == [4]


def test_an_lmdb_file_of_any_name(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(tmp_path / "base"), subdir=False, map_size=2**20) as env, env.begin(write=True) as transaction:
        transaction.put(b"anna/1", png(9))
    assert shades(tmp_path / "base", LmdbFaces) == [9]


def test_what_is_none_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "faces.db") as base:
        base.execute("create table faces (a)")
    shutil.make_archive(str(tmp_path / "faces"), "zip", tmp_path, "faces.db")
    np.save(tmp_path / "faces.npy", np.zeros(3))
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x04].")
    (tmp_path / "photo.png").write_bytes(png(1))
    for name, got in {
        "faces.db": "an SQLite database: ",
        "faces.zip": "a zip archive: .*unpack it and give the folder",
        "faces.npy": "a numpy array: ",
        "lfw.bin": "a pickle: .*--verify-pairs",
        "photo.png": r"a file that begins b'\\x89PNG",
    }.items():
        words = "spec must name a folder of identities, .*train.rec; or a .rec, .tar, .* LMDB file, or a text"
        with pytest.raises(ValueError, match=f"{words}.*, got {got}"):
            build_dataset(str(tmp_path / name), 12)


def test_commas_within_braces_part_no_sources() -> None:
    assert split_sources(" a,b{1,2} ,, c{x,{y,z}}.tar,") == ["a", "b{1,2}", "c{x,{y,z}}.tar"]


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == [f"a-{k}.tar" for k in ("08", "09", "10", "11")]
    assert expand_braces("a{0..1}{2,x}") == ["a02", "a0x", "a12", "a1x"]
    for text in ("a{1}", "a{1..", "a{0..99999999}", "a{0..9999}{0..9999}"):
        with pytest.raises(ValueError, match=r"spec must hold braces as \{000..123\}.*, got " + re.escape(repr(text))):
            expand_braces(text)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """As Hugging Face's `datasets` writes it: data/train-*.parquet, images as structs, a ClassLabel in the metadata."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": ["zoe", "anna"], "_type": "ClassLabel"}}
    names = json.dumps({"info": {"features": features}}).encode()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").write_bytes(png(40))
    for number, rows in enumerate(([(10, 1), (20, 0), (30, 1)], [(None, 0)])):
        images = [
            {"bytes": None if shade is None else png(shade), "path": "photo.png" if shade is None else f"{shade}.png"}
            for shade, _ in rows
        ]
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        table = arrow.table(
            {"image": arrow.array(images, kind), "label": arrow.array([k for _, k in rows], arrow.int64())}
        )
        table = table.replace_schema_metadata({b"huggingface": names})
        parquet.write_table(table, tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", row_group_size=2)
    return tmp_path


def test_hugging_face_parquet(parquet: Path) -> None:
    for spec in (parquet, parquet / "data", parquet / "data" / "*.parquet"):
        assert shades(spec, ParquetFaces) == [10, 20, 30, 40]
    faces = build_dataset(str(parquet), 12)
    assert list(faces.identities) == ["zoe", "anna"] and faces.labels.tolist() == [1, 0, 1, 0]
    assert [int(faces[k][0, 0, 0]) for k in (3, 0, 2, 1, 0)] == [40, 10, 30, 20, 10]
    assert faces.where(2).endswith("train-00000-of-00002.parquet, row 0 of row group 1")


def test_hugging_faces_splits_are_not_mixed(parquet: Path) -> None:
    folder = parquet / "data"
    shutil.copy(folder / "train-00000-of-00002.parquet", folder / "test-00000-of-00001.parquet")
    words = rf"one split, got test\* and train\* in {folder}; name those to read, '{folder}/train\*'"
    for spec in (parquet, folder):
        with pytest.raises(ValueError, match=words):
            build_dataset(str(spec), 12)
    assert shades(folder / "train*", ParquetFaces) == [10, 20, 30, 40]
    assert shades(folder / "test*", ParquetFaces) == [10, 20, 30]


def test_parquet_files_of_other_class_names_are_refused(parquet: Path) -> None:
    """A number would stand for two people."""
    from pyarrow import parquet as pyarrow_parquet

    path = parquet / "data" / "train-00001-of-00002.parquet"
    table = pyarrow_parquet.read_table(path)
    names = table.schema.metadata[b"huggingface"].replace(b'"zoe", "anna"', b'"bob", "anna"')
    pyarrow_parquet.write_table(table.replace_schema_metadata({b"huggingface": names}), path)
    with pytest.raises(ValueError, match=r"files must give their classes the same names, got others in .*00001-of"):
        build_dataset(str(parquet), 12)


def test_parquet_with_bytes_and_names(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = {"jpg": [png(1), png(2), png(3), b"no image"], "person": ["bo", None, "al", "al"]}
    parquet.write_table(arrow.table(table), tmp_path / "faces.pq")
    faces = build_dataset(str(tmp_path / "faces.pq"), 12)
    assert faces.identities == ["al", "bo"] and faces.labels.tolist() == [1, 0, 0]
    assert "skipped: 1 rows without a label, e.g. None in row 1" in faces.report()
    assert int(faces[1][0, 0, 0]) == 3
    with pytest.raises(OSError, match="faces.pq, row 3 of row group 0"):
        faces[2]
    with pytest.raises(
        ValueError, match="ParquetFaces: label must be a whole number of at least 0 or a name, got None"
    ):
        build_dataset(str(tmp_path / "faces.pq"), 12, on_bad_image="raise")
    parquet.write_table(arrow.table({"a": [1], "label": [2]}), tmp_path / "faces.pq")
    with pytest.raises(
        ValueError, match="ParquetFaces: files must have a column of images, one of image, .*, got a, label in"
    ):
        build_dataset(str(tmp_path / "faces.pq"), 12)
    (tmp_path / "faces.pq").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="ParquetFaces: files must be readable Parquet files, got .*faces.pq"):
        build_dataset(str(tmp_path / "faces.pq"), 12)


def test_an_image_outside_of_the_parquet_files_folder_is_not_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    image = {"bytes": None, "path": "../secret.png"}
    parquet.write_table(arrow.table({"image": [image], "label": [0]}), tmp_path / "in" / "a.parquet")
    with pytest.raises(OSError, match="names ../secret.png, outside of its folder"):
        build_dataset(str(tmp_path / "in"), 12)[0]


def test_an_image_that_a_parquet_file_only_names_must_be_there(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    for path, got in (("gone.png", "No such file"), (b"gone.png", "holds no image"), (None, "holds no image")):
        table = arrow.table({"image": [{"bytes": png(1), "path": None}] * 2 + [{"bytes": None, "path": path}] * 2,
                             "label": [0, 0, 1, 1]})  # fmt: skip
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        faces = ParquetFaces(tmp_path / "a.parquet", 12)
        assert faces[0].shape == (3, 12, 12)
        with pytest.raises(UnreadableImage, match=f"ParquetFaces: .*a.parquet, row 1 of row group 1.*{got}"):
            faces[3]


def test_row_groups_with_fewer_images_than_labels_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"image": [png(1)] * 3, "label": [0, 0, 1]}), tmp_path / "a.parquet")
    faces = ParquetFaces(tmp_path / "a.parquet", 12)
    whole = faces._read
    monkeypatch.setattr(faces, "_read", lambda *place: whole(*place)[:2])
    assert faces[1].shape == (3, 12, 12)
    with pytest.raises(UnreadableImage, match="a.parquet, row 2 of row group 0 .*out of bounds"):
        faces[2]


def test_a_parquet_file_that_changes_is_an_error_that_names_it(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        parquet.write_table(arrow.table({"image": [png(1)] * 4, "label": labels}), tmp_path / "next")
        if path.exists():
            faces = ParquetFaces(path, 12)
        (tmp_path / "next").replace(path)
    words = r"row 0 of row group 0 \(ParquetFaces: files must stay as they were .*a.parquet, which has changed since"
    assert faces[0].shape == (3, 12, 12)  # by the file that it has open
    with pytest.raises(UnreadableImage, match=words):
        pickle.loads(pickle.dumps(faces))[0]


@pytest.mark.parametrize("change", ["written anew", "cut"])
def test_a_parquet_file_that_is_written_while_it_is_open_is_an_error_that_names_it(tmp_path: Path, change: str) -> None:
    """The images of one layout and other people would be read under the old labels."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path, values = tmp_path / "a.parquet", [10, 20, 30, 40]
    for target, order in ((path, values), (tmp_path / "next", values[::-1])):
        table = arrow.table({"image": [png(value) for value in order], "label": [value // 20 for value in order]})
        parquet.write_table(table, target, row_group_size=2, compression="none", use_dictionary=False)
    faces = ParquetFaces(path, 12)
    assert int(faces[0].max()) == 10
    content = (tmp_path / "next").read_bytes()
    assert len(content) == path.stat().st_size
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate(len(content) if change == "written anew" else 200)
    assert int(faces[1].max()) == 20  # of the row group that was read before
    words = r"row 0 of row group 1 \(ParquetFaces: files must stay as they were .*a.parquet, which has changed since"
    with pytest.raises(UnreadableImage, match=words):
        faces[2]
    with pytest.raises(UnreadableImage, match=words):
        pickle.loads(pickle.dumps(faces))[2]


def test_a_parquet_file_of_the_same_size_and_time_is_the_same_one(tmp_path: Path) -> None:
    """As another mount shows it, or a copy on another machine."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"image": [png(10), png(20)] * 2, "label": [0, 0, 1, 1]}), path)
    faces = ParquetFaces(path, 12)
    shutil.copy2(path, tmp_path / "copy")
    before = path.stat().st_ino
    (tmp_path / "copy").replace(path)
    assert path.stat().st_ino != before
    there = pickle.loads(pickle.dumps(faces))
    assert int(there[1].max()) == 20
    path.write_bytes(path.read_bytes()[:200])
    there._groups.clear()
    with pytest.raises(UnreadableImage, match="files must stay as they were"):
        there[1]


def test_parquet_labels_that_python_cannot_hold_are_named(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    offsets = arrow.array([0, 1, 2], arrow.int32()).buffers()[1]
    no_utf8 = arrow.Array.from_buffers(arrow.string(), 2, [None, offsets, arrow.py_buffer(b"\xff\xfe")])
    for labels, got in (
        (no_utf8, "string in .*'utf-8' codec"),
        (arrow.array([1, 2], arrow.time64("ns")), "time64.*ns"),
    ):
        parquet.write_table(arrow.table({"image": [png(1)] * 2, "label": labels}), tmp_path / "a.parquet")
        words = f"ParquetFaces: label must be a whole number of at least 0 or a name, got {got}.*"
        with pytest.raises(ValueError, match=words) as caught:
            ParquetFaces(tmp_path / "a.parquet", 12)
        assert "a.parquet" in str(caught.value)


def test_worker_processes_read_parquet_as_their_parent_does(parquet: Path) -> None:
    faces = build_dataset(str(parquet), 12)
    faces[0]  # the parent has files and row groups open
    one, other = (list(AttentionLoader(faces, 2, 1, num_workers=count)) for count in (0, 2))
    assert len(one) == 2
    assert all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(faces))[2], faces[2])

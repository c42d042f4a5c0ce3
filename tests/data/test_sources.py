"""Lists, tar shards and LMDB databases: written by their own libraries, read as faces; and what of them is refused."""

import io
import json
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import (
    AttentionLoader,
    ConcatFaces,
    FolderFaces,
    ListFaces,
    LmdbFaces,
    RecordFaces,
    TarFaces,
    UnreadableImage,
    build_dataset,
    pack,
)


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def values(dataset):
    return [int(dataset[i].float().mean()) for i in range(len(dataset))]


def same_through_workers(dataset):
    batches = [list(AttentionLoader(dataset, 2, 1, num_workers=n)) for n in (0, 2)]
    return len(batches[0]) > 0 and all(
        torch.equal(a, b) for x, y in zip(*batches, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture
def images(tmp_path):
    for shade in (10, 20, 30, 40):
        (tmp_path / f"a face {shade}.png").write_bytes(png(shade))
    return tmp_path


def test_a_list(images):
    (images / "l.txt").write_text(
        "# faces\na face 10.png 7\n\n  a face 20.png\t3\na face 30.png   7\r\na face 40.png 3"
    )
    faces = ListFaces(images / "l.txt", 16)
    assert (
        values(faces) == [10, 20, 30, 40] and faces.labels.tolist() == [1, 0, 1, 0] and faces.identities == ["3", "7"]
    )
    assert faces.path(1) == images / "a face 20.png"
    assert "label numbers 3 to 7 with 3 gaps, renumbered from 0" in faces.report()
    (images / "elsewhere").mkdir()
    (images / "l.txt").rename(images / "elsewhere" / "l.lst")
    assert values(ListFaces(images / "elsewhere" / "l.lst", 16, root=images)) == values(faces)
    with pytest.raises(UnreadableImage, match=re.escape(str(images / "elsewhere" / "a face 10.png"))):
        ListFaces(images / "elsewhere" / "l.lst", 16)[0]
    assert same_through_workers(faces)


def test_a_lists_bad_lines_are_counted_or_named(images):
    start = "a face 10.png 0\n"
    for line in (
        "a face 20.png",
        "12",
        "a.png -1",
        "a.png 1.5",
        "x" * 70_000 + " 1",
        "a\0.png 1",
        "a.png 1" + "0" * 18,
    ):
        (images / "l.txt").write_text(f"{start}{line}\na face 30.png 1\n")
        faces = ListFaces(images / "l.txt", 16)
        assert values(faces)[:1] == [10] and 30 in values(faces)
        assert re.search(
            rf"skipped: . lines that are not a path and a label, e.g. b'.*' at byte {len(start)} of", faces.report()
        )
        with pytest.raises(
            ValueError, match=rf"ListFaces: every line must be a path and a label, got .* at byte {len(start)} of"
        ):
            ListFaces(images / "l.txt", 16, on_bad_image="raise")
    (images / "l.txt").write_text("\n")
    with pytest.raises(ValueError, match="ListFaces: path must name at least one image, got .*l.txt; a line is a path"):
        ListFaces(images / "l.txt", 16)
    with pytest.raises(ValueError, match="ListFaces: path must be a readable list, got .*none.txt"):
        ListFaces(images / "none.txt", 16)


def test_a_lists_missing_and_duplicated_images_show_with_check(images):
    (images / "b.png").write_bytes(png(10))
    (images / "l.txt").write_text("a face 10.png 0\na face 10.png 0\nb.png 1\nnone.png 1\nnone.png 2\n")
    report = ListFaces(images / "l.txt", 16, check=True).report()
    assert "duplicated images: 2; 1 images stand under more than one identity" in report
    assert "skipped: 2 images that cannot be decoded" in report and "skipped: 1 identities without a readable" in report


def test_folders_count_duplicates_with_check(images):
    for name in ("anna/1.png", "anna/2.png", "ben/1.png"):
        (images / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (images / "faces" / name).write_bytes(png(50))
    assert "duplicated images: not looked for" in FolderFaces(images / "faces", 16).report()
    report = FolderFaces(images / "faces", 16, check=True).report()
    assert "duplicated images: 2; 1 images stand under more than one identity" in report and "not looked" not in report


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shard(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for number, label in enumerate((4, 2, 4)):
            add(archive, f"./x/{number:04d}.png", png(10 * number + 10))
            add(archive, f"./x/{number:04d}.cls", str(label).encode())
    return tmp_path / "train.tar"


def test_shards_as_webdataset_writes_them(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.ShardWriter(f"file:{tmp_path}/train-%04d.tar", maxcount=2, verbose=0) as writer:
        for number, label in enumerate((4, 2, 4)):
            writer.write({"__key__": f"sample{number}", "png": png(10 * number + 10), "cls": label})
    for spec in (f"{tmp_path}/train-{{0000..0001}}.tar", f"{tmp_path}/train-0000.tar,{tmp_path}/train-0001.tar"):
        faces = build_dataset(spec, 16)
        assert values(faces) == [10, 20, 30]
    faces = TarFaces([tmp_path / "train-0000.tar", tmp_path / "train-0001.tar"], 16)
    assert faces.labels.tolist() == [1, 0, 1] and faces.identities == ["2", "4"]
    assert "label numbers 2 to 4 with 1 gaps" in faces.report()
    read = [sample["png"] for sample in webdataset.WebDataset(f"{tmp_path}/train-0000.tar", shardshuffle=False)]
    assert read == [faces.content(0), faces.content(1)]


def test_a_shard_with_numbers(shard):
    faces = TarFaces(shard, 16)
    assert values(faces) == [10, 20, 30] and faces.labels.tolist() == [1, 0, 1] and "skipped" not in faces.report()
    assert values(pickle.loads(pickle.dumps(faces))) == [10, 20, 30] and same_through_workers(faces)
    assert build_dataset(str(shard), 16).identities == ["2", "4"]
    assert faces.where(1).startswith(f"{shard}, the image at byte ")


def test_a_shard_with_json_or_folders(tmp_path):
    with tarfile.open(tmp_path / "json.tar", "w") as archive:
        for number in range(3):
            add(archive, f"{number}.json", json.dumps({"label": number % 2, "source": "x"}).encode())
            add(archive, f"{number}.png", png(10 * number))
    assert TarFaces(tmp_path / "json.tar", 16).labels.tolist() == [0, 1, 0]
    with tarfile.open(tmp_path / "folders.tar", "w") as archive:
        for number in range(3):
            add(archive, f"faces/{('ben', 'anna', 'ben')[number]}/{number}.png", png(10 * number))
        add(archive, "readme.txt", b"hello")
    faces = TarFaces(tmp_path / "folders.tar", 16)
    assert faces.identities == ["anna", "ben"] and faces.labels.tolist() == [1, 0, 1]
    with pytest.raises(
        ValueError, match=r"give every image its identity in the same way, got folders and numbers: 0 of .*, ben of"
    ):
        TarFaces([tmp_path / "json.tar", tmp_path / "folders.tar"], 16)


def test_what_is_wrong_in_a_shard(shard, tmp_path):
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        members = {member.name: member for member in archive}
    third, label = members["./x/0002.png"], members["./x/0001.cls"]
    bad_header = whole[: third.offset] + b"\xff" * 512 + whole[third.offset + 512 :]
    bad_label = whole[: label.offset_data] + b"x" + whole[label.offset_data + 1 :]
    cases = [
        (whole[: third.offset_data + 20], "damaged ends of shards", "must hold .* bytes, got a file that ends"),
        (bad_header, "damaged ends of shards", f"ReadError: what stands at byte {third.offset} is no header"),
        (bad_label, "samples whose label", "hold the label of x/0001.cls"),
    ]
    for content, what, message in cases:
        shard.write_bytes(content)
        faces = TarFaces(shard, 16)
        assert values(faces) in ([10, 20], [10, 30]) and what in faces.report() and str(shard) in faces.report()
        with pytest.raises(ValueError, match=f"TarFaces: shards must be intact, got {shard}: byte .*{message}"):
            TarFaces(shard, 16, on_bad_image="raise")
    with tarfile.open(shard, "w:gz") as archive:
        add(archive, "a/0.png", png(1))
    with pytest.raises(
        ValueError, match="TarFaces: shards must hold at least one image with an identity.*damaged ends"
    ):
        TarFaces(shard, 16)
    for name in ("none.tar", "."):
        with pytest.raises(ValueError, match="TarFaces: shards must be readable tar files, got"):
            TarFaces(tmp_path / name, 16)
    with tarfile.open(shard, "w") as archive:
        add(archive, "0.png", png(1))
        add(archive, "b/1.png", png(2))
    assert "skipped: 1 images without an identity, e.g." in TarFaces(shard, 16).report()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])  # of an unknown kind only the size is used, to go on
def test_a_tar_header_that_points_back_ends_the_walk(shard, kind):
    content = bytearray(shard.read_bytes())
    header = tarfile.TarInfo("loop/0.png")
    header.type = kind
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")  # base-256: minus 512 bytes
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    content[2048:2048] = block  # between two samples
    shard.write_bytes(content)
    faces = TarFaces(shard, 16)
    assert values(faces) == [10] and "damaged ends of shards" in faces.report()


@pytest.fixture
def database(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(tmp_path / "db"), map_size=2**22) as env, env.begin(write=True) as transaction:
        for name, shade in (("ben/0", 10), ("ben/1", 20), ("anna/0", 30), ("anna/x y", 40)):
            transaction.put(name.encode(), png(shade))
        transaction.put(b"__len__", b"4")
    return tmp_path / "db"


def test_a_database(database):
    faces = LmdbFaces(database, 16)
    assert faces.identities == ["anna", "ben"] and values(faces) == [30, 40, 10, 20]
    assert "skipped: 1 entries without an identity in their key, e.g. '__len__'" in faces.report()
    assert faces.where(1) == f"{database}, key 'anna/x y'"
    assert values(build_dataset(str(database), 16, check=True)) == values(faces)
    assert values(pickle.loads(pickle.dumps(faces))) == values(faces) and same_through_workers(faces)


def test_a_database_in_a_file(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**22, subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"ben/0", png(10))
        transaction.put(b"ben/1", b"no image")
    faces = build_dataset(str(tmp_path / "a.lmdb"), 16)
    assert int(faces[0].float().mean()) == 10
    with pytest.raises(UnreadableImage, match=rf"got {tmp_path / 'a.lmdb'}, key 'ben/1' \("):
        faces[1]


def test_a_damaged_database_ends_a_process_of_its_own(database):
    file = database / "data.mdb"
    content = bytearray(file.read_bytes())
    size = len(content)
    for damaged in (content[:5000], b"\xff" * size, bytes(4096), content[:8192] + b"\xfe" * (size - 8192)):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=f"LmdbFaces: path must (be an intact LMDB database, got {file}|hold at least)"
        ):
            LmdbFaces(database, 16)
    with pytest.raises(ValueError, match="LmdbFaces: path must be an LMDB database, got .*/none, without a file"):
        LmdbFaces(database / "none", 16)


def test_a_database_that_this_process_has_open_is_named_at_the_start(database):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with (
        lmdb.open(str(database), readonly=True, lock=False),
        pytest.raises(
            ValueError, match=f"LmdbFaces: path must not be open already, got {database} .*close yours first"
        ),
    ):
        LmdbFaces(database, 16)
    assert len(LmdbFaces(database, 16)) == 4


@pytest.mark.parametrize("change", ["cut", "written"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_database_that_changes_is_an_error_that_names_it(database, change, workers):
    faces = LmdbFaces(database, 16, on_bad_image="raise")
    loader = AttentionLoader(faces, 2, 1, num_workers=workers)
    file = database / "data.mdb"
    if change == "cut":
        os.truncate(file, 4096)
    else:
        os.utime(file, ns=(1, 1))
    with pytest.raises(UnreadableImage, match=f"LmdbFaces: {database}, key 'anna.* has changed since it was opened"):
        faces[0]
    with pytest.raises(UnreadableImage, match="has changed since it was opened"):
        next(iter(loader))


FOREIGN = {
    "image-label": ({b"num-samples": b"1", b"image-000000001": b"x", b"label-000000001": b"4"},
                    "it has the keys image-%09d and label-%09d: write a database of your own with"),
    "pickles": ({b"0": pickle.dumps((b"x", 3)), b"__len__": pickle.dumps(1)},
                "it has numbered keys with pickles, which are never run here"),
    "msgpack": ({b"0": b"\x91\xc4\x01x", b"1": b"\x92\x03\x04"},
                "it has numbered keys with msgpack lists or maps, none of an image and a label"),
    "numbers": ({b"0": b"\xff\xd8\xff", b"1": b"\xff\xd8\xff"}, "it has numbered keys without labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FOREIGN))
def test_other_peoples_layouts_are_named(tmp_path, name):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    entries, message = FOREIGN[name]
    with lmdb.open(str(tmp_path / "db"), map_size=2**22) as env, env.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    words = rf"key <identity>/<image>, or in .*, got {tmp_path}/db.*; {re.escape(message)}"
    with pytest.raises(ValueError, match=words):
        LmdbFaces(tmp_path / "db", 16)


def test_a_named_database_is_named(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(tmp_path / "db"), map_size=2**22, max_dbs=1) as env:
        faces = env.open_db(b"train faces")
        with env.begin(write=True, db=faces) as transaction:
            transaction.put(b"ann/1", png(1))
    with pytest.raises(ValueError, match=r"it holds named databases \('train faces'\): .* one of them, open_db"):
        LmdbFaces(tmp_path / "db", 16)


def test_without_lmdb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("attfc_cuda.data.sources.lmdb.lmdb", None)
    with pytest.raises(ImportError, match="LmdbFaces: needs lmdb; pip install lmdb"):
        LmdbFaces(tmp_path, 16)


def test_sources_are_joined_and_packed(shard, images, tmp_path):
    (images / "l.txt").write_text("a face 10.png 0\na face 20.png 1\n")
    faces = build_dataset(f"{shard}, {images / 'l.txt'}", 16, on_bad_image="raise")
    assert isinstance(faces, ConcatFaces) and faces.on_bad_image == "raise"
    assert values(faces) == [10, 20, 30, 10, 20] and faces.labels.tolist() == [1, 0, 1, 2, 3]
    report = faces.report()
    assert "ConcatFaces: 4 identities, 5 images" in report and "TarFaces: 2" in report and "ListFaces: 2" in report
    pack(build_dataset(str(shard), 16), tmp_path / "a.rec")
    packed = build_dataset(str(tmp_path / "a.rec"), 16)
    assert isinstance(packed, RecordFaces) and values(packed) == [20, 10, 30]
    with pytest.raises(ValueError, match=r"identities must be left out where a source is no folder, got \['a', ''\]"):
        build_dataset(f"{shard}, {images / 'l.txt'}", 16, "a,")
    with pytest.raises(ValueError, match="ConcatFaces: parts must share one image_size and on_bad_image, got"):
        ConcatFaces([build_dataset(str(shard), 16), build_dataset(str(shard), 24)])

"""RecordIO: what another writer wrote is read back, at random and without an index, and what is damaged is named."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attfc_cuda.data import AttentionLoader, FolderFaces, ListFaces, RecordFaces, UnreadableImage, pack
from attfc_cuda.data.sources import recordio_headers
from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.data.sources.recordio import RecordFile
from attfc_cuda.data.sources.recordio_index import read_idx
from attfc_cuda.data.sources.recordio_writer import RecordWriter
from attfc_cuda.data.sources.skipped import Skipped


def png(value, size=16):
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class OtherWriter:
    """RecordIO restated from the format, sharing nothing with the package: words are written one by one, and a record
    that holds the magic at a multiple of 4 is cut there, by looking at every word."""

    def __init__(self):
        self.rec, self.idx = bytearray(), []

    def part(self, kind, data):
        for word in (0xCED7230A, (kind << 29) | len(data)):
            self.rec += word.to_bytes(4, "little")
        self.rec += data
        while len(self.rec) % 4:
            self.rec.append(0)

    def record(self, key, data):
        self.idx.append((key, len(self.rec)))
        words = [data[k : k + 4] for k in range(0, len(data), 4)]
        cuts = [k for k, word in enumerate(words) if word == bytes.fromhex("0a23d7ce")]
        pieces = [words[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(words)], strict=True)]
        for number, piece in enumerate(pieces):
            kind = 0 if not cuts else 1 if number == 0 else 3 if number == len(pieces) - 1 else 2
            self.part(kind, b"".join(piece))

    def face(self, key, label, image, flag=0):
        labels = [label] + [0.5] * (flag - 1) if flag else []
        head = struct.pack("<I", flag) + struct.pack("<f", -7.0 if flag else label) + struct.pack("<QQ", key, 0)
        self.record(key, head + b"".join(struct.pack("<f", x) for x in labels) + image)

    def ranges(self, key, first, stop):
        head = struct.pack("<I", 2) + struct.pack("<f", 0.0) + struct.pack("<QQ", key, 0)
        self.record(key, head + struct.pack("<f", first) + struct.pack("<f", stop))

    def save(self, folder, index=True):
        (folder / "train.rec").write_bytes(self.rec)
        if index:
            (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in self.idx))
        return folder / "train.rec"


def insightface_layout(flag):
    """Record 0 with the ranges; six images of labels 3, 3, 5, 5, 5, 9; a record for each identity."""
    writer = OtherWriter()
    writer.ranges(0, 7, 10)
    for key, label in enumerate((3, 3, 5, 5, 5, 9), start=1):
        writer.face(key, label, png(10 * key), flag)
    for key, (first, stop) in enumerate(((1, 3), (3, 6), (6, 7)), start=7):
        writer.ranges(key, first, stop)
    return writer


def values(dataset):
    return [int(dataset[i].float().mean()) for i in range(len(dataset))]


@pytest.mark.parametrize("flag", [0, 1, 2])
@pytest.mark.parametrize("index", [True, False])
def test_another_writers_file_reads_back(tmp_path, flag, index):
    faces = RecordFaces(insightface_layout(flag).save(tmp_path, index), 16)
    assert values(faces) == [10, 20, 30, 40, 50, 60]
    assert faces.labels.tolist() == [0, 0, 1, 1, 1, 2] and faces.identities == ["3", "5", "9"]
    report = faces.report()
    assert "3 identities, 6 images (1 to 3 each" in report and "identities with a single image: 1" in report
    assert "header: images are keys 1 to 6, identities have 3 ranges\n" in report
    assert "label numbers 3 to 9 with 4 gaps, renumbered from 0" in report
    assert "duplicated images: not looked for" in report and "skipped" not in report
    assert "duplicated images: 0" in RecordFaces(tmp_path / "train.rec", 16, check=True).report()


def test_a_file_without_a_header_record(tmp_path):
    writer = OtherWriter()
    for key, label in enumerate((0, 1, 0, 1)):
        writer.face(key, label, png(10 * key), flag=2 * (key == 0))  # an image with two labels is no header
    faces = RecordFaces(writer.save(tmp_path), 16)
    assert values(faces) == [0, 10, 20, 30] and faces.labels.tolist() == [0, 1, 0, 1]
    assert faces.images_of(1).tolist() == [1, 3] and "header" not in faces.report()


def test_the_idx_decides_the_order(tmp_path):
    writer = OtherWriter()
    for key in (2, 0, 1):
        writer.face(key, key, png(10 * key))
    assert values(RecordFaces(writer.save(tmp_path), 16)) == [0, 10, 20]


def test_records_in_several_parts(tmp_path):
    magic, image = struct.pack("<I", 0xCED7230A), png(70)
    tail = b"xx" + magic + b"yy" + magic + magic + b"zzzz" + magic  # PNG readers stop at IEND
    writer = OtherWriter()
    for key, padding in enumerate(range(4)):
        writer.face(key, 0, image + bytes(padding) + tail)
    path = writer.save(tmp_path)
    assert any(kind in bytes(writer.rec)[7::4] for kind in (0x20, 0x40, 0x60))  # parts were written
    for index in (True, False):
        if not index:
            path.with_suffix(".idx").unlink()
        faces = RecordFaces(path, 16)
        assert values(faces) == [70] * 4
        assert [faces.content(i) for i in range(4)] == [image + bytes(padding) + tail for padding in range(4)]


def test_duplicates_are_counted(tmp_path):
    writer = OtherWriter()
    for key, (label, value) in enumerate([(0, 1), (0, 1), (0, 2), (1, 1), (1, 3), (2, 3)]):
        writer.face(key, label, png(value))
    report = RecordFaces(writer.save(tmp_path), 16, check=True).report()
    assert "duplicated images: 3; 2 images stand under more than one identity" in report


def test_header_that_disagrees_is_reported_and_the_images_count(tmp_path):
    writer = insightface_layout(0)
    writer.rec[writer.idx[8][1] + 32 : writer.idx[8][1] + 40] = struct.pack("<ff", 3, 7)  # identity 5 takes 9's image
    faces = RecordFaces(writer.save(tmp_path), 16)
    assert faces.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert "3 ranges, 1 of them at odds with the images' labels, which count" in faces.report()


def test_the_index_is_cached_and_made_anew_when_the_file_changes(tmp_path, monkeypatch):
    path = insightface_layout(0).save(tmp_path)
    first = RecordFaces(path, 16)
    cache = tmp_path / "train.rec.attfc_index"
    assert cache.is_file()
    with monkeypatch.context() as patch:
        patch.setattr("attfc_cuda.data.sources.recordio_index.build_index", None)  # would fail if it were called
        again = RecordFaces(path, 16)
    assert again.report() == first.report() and values(again) == values(first)

    for damaged in (b"", b"x", cache.read_bytes()[:-1], cache.read_bytes()[:60] + b"\xff" + cache.read_bytes()[61:]):
        cache.write_bytes(damaged)
        assert values(RecordFaces(path, 16)) == values(first)
        assert cache.read_bytes() != damaged

    other = OtherWriter()
    other.face(0, 0, png(99))
    other.save(tmp_path)
    assert values(RecordFaces(path, 16)) == [99]


def test_a_folder_that_cannot_be_written_caches_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    path = insightface_layout(0).save(folder)
    (folder / "train.rec.attfc_index").mkdir()  # permissions do not bind the superuser: a folder is in the way
    faces = RecordFaces(path, 16)
    assert len(list((tmp_path / "cache" / "attfc_cuda").iterdir())) == 1
    monkeypatch.setattr("attfc_cuda.data.sources.recordio_index.build_index", None)
    assert values(RecordFaces(path, 16)) == values(faces)


def test_trains_through_the_loader_in_worker_processes(tmp_path):
    faces = RecordFaces(insightface_layout(2).save(tmp_path), 16)
    batches = [list(AttentionLoader(faces, 2, 1, drop_last=False, num_workers=n)) for n in (0, 2)]
    assert len(batches[0]) == 3 and all(
        torch.equal(a, b) for x, y in zip(*batches, strict=True) for a, b in zip(x, y, strict=True)
    )
    copy = pickle.loads(pickle.dumps(faces))
    assert values(copy) == values(faces)


def damage_cases():
    whole = insightface_layout(0)
    third = whole.idx[3][1]

    def changed(offset, data):
        rec = bytearray(whole.rec)
        rec[offset : offset + len(data)] = data
        return bytes(rec)

    return {
        "cut": (bytes(whole.rec[: whole.idx[6][1] + 50]), "must hold"),
        "magic": (changed(third, b"\0\0\0\0"), f"byte {third} must be the magic 0a23d7ce, got 00000000"),
        "kind": (changed(third + 7, b"\xa0"), f"byte {third + 4} must name a part kind of 0 to 3, got 5"),
        "middle": (changed(third + 7, b"\x40"), f"byte {third} must be the start of a record, got part kind 2"),
        "first": (changed(third + 7, b"\x20"), "must go on with the record of byte"),
        "length": (changed(third + 4, b"\xff\xff\xff\x1f"), f"byte {third + 8} must hold 536870911 bytes"),
        "flag": (changed(third + 8, b"\xff\xff\xff\xff"), f"byte {third} must hold the 4294967295 labels"),
        "label": (changed(third + 12, struct.pack("<f", float("nan"))), f"byte {third} must have a label, got nan"),
        "fraction": (changed(third + 12, struct.pack("<f", 2.5)), f"byte {third} must have a label, got 2.5"),
        "large": (changed(third + 12, struct.pack("<f", 1e30)), "must have a label, got 1e+30"),
    }


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("case", list(damage_cases()))
def test_damage_is_counted_or_named(tmp_path, case, index):
    content, message = damage_cases()[case]
    path = insightface_layout(0).save(tmp_path, index)
    path.write_bytes(content)
    faces = RecordFaces(path, 16)
    kept = values(faces)
    assert kept == [v for v in (10, 20, 30, 40, 50, 60) if v in kept] and 5 <= len(kept) + (case == "first") <= 6
    assert "skipped: " in faces.report() and str(path) in faces.skipped.text("")
    with pytest.raises(ValueError, match="RecordFaces: path must hold intact records, got") as raised:
        RecordFaces(path, 16, on_bad_image="raise")
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_a_hostile_idx(tmp_path):
    path = insightface_layout(0).save(tmp_path)
    idx = path.with_suffix(".idx")
    good = idx.read_text()
    for text, message in (
        (good + "11\t99999999996\n", "byte 99999999996 must hold 8 bytes, got a file that ends at byte"),
        (good + "11\t2\n", "must lie behind the record before it"),
        (good + "11\t0\n", "must lie behind the record before it"),
        (good + "3\t0\n", "must list each key once, got key 3 twice"),
        (good + "x\t0\n", rf"byte {len(good)} must be a line of key, tab and offset"),
        (good + "1" * 30 + "\t0\n", "must be a line of key"),
        (good + "-1\t0\n", "must be a line of key"),
        ("\0" * 100, r"byte 0 must be a line of key"),
        ("", "hold data, got an empty file"),
    ):
        idx.write_text(text)
        faces = RecordFaces(path, 16)
        assert values(faces) == [10, 20, 30, 40, 50, 60], text
        with pytest.raises(ValueError, match=message):
            RecordFaces(path, 16, on_bad_image="raise")


def test_a_long_idx_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("attfc_cuda.data.sources.recordio_index._CHUNK", 64)
    lines = [(key, 4 * key * key) for key in range(200)]
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{offset}\r\n" for key, offset in lines).removesuffix("\r\n"))
    keys, offsets = read_idx(tmp_path / "a.idx")
    assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == lines
    (tmp_path / "a.idx").write_text("1" * 100)
    with pytest.raises(DamagedFile, match="byte 0 must be a line of key, tab and offset"):
        read_idx(tmp_path / "a.idx")


def test_what_is_no_rec_file(tmp_path):
    (tmp_path / "empty.rec").touch()
    (tmp_path / "text.rec").write_text("hello " * 100)
    (tmp_path / "folder.rec").mkdir()
    os.mkfifo(tmp_path / "pipe.rec")
    for name, reason in (
        ("none.rec", "be a readable .rec file, got .*No such file"),
        ("empty.rec", "be a readable .rec file, got .*an empty file"),
        ("folder.rec", "be a readable .rec file"),
        ("pipe.rec", "be a readable .rec file, got .*not a regular file"),
        ("text.rec", "hold at least one image, got .*text.rec; skipped: 1 damaged stretches"),
    ):
        with pytest.raises(ValueError, match=f"^RecordFaces: path must {reason}"):
            RecordFaces(tmp_path / name, 16)


def test_a_file_cut_while_it_is_open_is_an_error_not_a_crash(tmp_path):
    path = insightface_layout(0).save(tmp_path)
    faces = RecordFaces(path, 16)
    os.truncate(path, 100)
    with pytest.raises(UnreadableImage, match=f"RecordFaces: {path}: byte .* got a file that ends at byte 100"):
        faces[5]


def test_a_corrupt_image_is_named_by_file_and_offset(tmp_path):
    writer = OtherWriter()
    for key in range(3):
        writer.face(key, key, png(10) if key != 1 else b"no image at all")
    path = writer.save(tmp_path)
    place = f"{path}, the record at byte {writer.idx[1][1]} "
    with pytest.raises(UnreadableImage, match=f"decode_image: data must be a readable image, got {place}"):
        RecordFaces(path, 16)[1]
    faces = RecordFaces(path, 16, check=True)
    assert faces.identities == ["0", "2"] and "skipped: 1 identities without a readable image, e.g. 1" in faces.report()


@pytest.fixture
def folder(tmp_path):
    for name, shades in (("anna", (10, 20)), ("ben", (30,)), ("carl", (40, 50, 60))):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for shade in shades:
            (tmp_path / "faces" / name / f"{shade}.png").write_bytes(png(shade))
    return tmp_path / "faces"


def test_pack_and_read_back(folder, tmp_path):
    path = tmp_path / "out" / "train.rec"
    text = pack(FolderFaces(folder, 16), path)
    assert text.startswith(f"{path}: 6 images of 3 identities, 0.0 MiB") and "skipped" not in text
    for index in (True, False):
        if not index:
            path.with_suffix(".idx").unlink()
        faces = RecordFaces(path, 16, on_bad_image="raise")
        assert values(faces) == [10, 20, 30, 40, 50, 60] and faces.labels.tolist() == [0, 0, 1, 2, 2, 2]
        assert "header: images are keys 1 to 6, identities have 3 ranges\n" in faces.report()
        assert faces.content(0) == png(10)
    assert {p.name for p in path.parent.iterdir()} == {"train.rec", "train.rec.attfc_index"}


def test_packing_is_byte_for_byte_the_other_writers_file(folder, tmp_path):
    pack(FolderFaces(folder, 16), tmp_path / "train.rec")
    other = OtherWriter()
    other.ranges(0, 7, 10)
    for key, (label, shade) in enumerate(zip((0, 0, 1, 2, 2, 2), (10, 20, 30, 40, 50, 60), strict=True), start=1):
        other.face(key, label, png(shade))
    for key, (first, stop) in enumerate(((1, 3), (3, 4), (4, 7)), start=7):
        other.ranges(key, first, stop)
    assert (tmp_path / "train.rec").read_bytes() == bytes(other.rec)
    assert read_idx(tmp_path / "train.idx")[1].tolist() == [offset for _, offset in other.idx]


def test_pack_resizes_and_leaves_out_what_cannot_be_read(folder, tmp_path):
    (folder / "ben" / "30.png").write_bytes(b"nothing")
    path = tmp_path / "train.rec"
    text = pack(FolderFaces(folder, 16), path, image_size=24)
    assert "5 images of 2 identities" in text and "skipped: 1 images that cannot be read, e.g. decode_image" in text
    assert "skipped: 1 identities without a readable image, e.g. ben" in text
    faces = RecordFaces(path, 24, on_bad_image="raise")
    assert faces.labels.tolist() == [0, 0, 1, 1, 1] and faces.content(0)[:3] == b"\xff\xd8\xff"
    assert np.abs(np.array(values(faces)) - [10, 20, 40, 50, 60]).max() <= 1
    before = path.read_bytes()
    with pytest.raises(UnreadableImage, match="ben/30.png"):
        pack(FolderFaces(folder, 16, on_bad_image="raise"), path, image_size=24)
    assert path.read_bytes() == before and len(RecordFaces(path, 24)) == 5  # the old pair is still whole
    assert not list(tmp_path.glob(".*"))


def test_a_kill_while_packing_never_leaves_an_idx_of_another_rec(folder, tmp_path, monkeypatch):
    path = tmp_path / "train.rec"
    pack(FolderFaces(folder, 16), path)
    (folder / "anna" / "10.png").unlink()
    fewer, replace, done = FolderFaces(folder, 16), os.replace, []

    def killed(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(replace(source, target))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        pack(fewer, path)
    assert values(RecordFaces(path, 16, on_bad_image="raise")) == [20, 30, 40, 50, 60]


def test_pack_without_a_header_where_float32_cannot_hold_its_keys(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("attfc_cuda.data.packing.MAX_LABEL", 7)
    pack(FolderFaces(folder, 16), tmp_path / "train.rec")
    faces = RecordFaces(tmp_path / "train.rec", 16, on_bad_image="raise")
    assert values(faces) == [10, 20, 30, 40, 50, 60] and "header" not in faces.report()
    monkeypatch.setattr("attfc_cuda.data.packing.MAX_LABEL", 2)
    with pytest.raises(ValueError, match="pack: dataset must have at most 2 identities, got 3"):
        pack(FolderFaces(folder, 16), tmp_path / "train.rec")
    with pytest.raises(ValueError, match="pack: path must end in .rec, got"):
        pack(FolderFaces(folder, 16), tmp_path / "train.lst")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.sampled_from([b"", b"a", b"bcd", b"efgh", b"\x0a\x23\xd7\xce", b"\xce"]), max_size=6).map(b"".join),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["scalar", "vector"]),
)
def test_any_bytes_come_back(tmp_path_factory, images, layout):
    path = Path(tmp_path_factory.mktemp("any")) / "a.rec"
    with RecordWriter(path) as writer:
        for key, image in enumerate(images):
            writer.write(key, [key], image, layout)
    records, other = RecordFile(path), OtherWriter()
    for key, image in enumerate(images):
        other.record(key, struct.pack("<IfQQ", 0, key, key, 0) + image) if layout == "scalar" else other.record(
            key, struct.pack("<IfQQf", 1, 0, key, 0, key) + image
        )
    assert path.read_bytes() == bytes(other.rec)
    offsets = list(records.scan(lambda cause: pytest.fail(str(cause))))
    assert offsets == [offset for _, offset in other.idx]
    assert [bytes(records.face(offset)[0].image) for offset in offsets] == images


def test_pack_takes_images_only_and_none_from_outside(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(99))
    (folder / "anna" / "page.jpg").write_text("<html>")
    (folder / "anna" / "empty.png").touch()
    (folder / "ben" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "ben" / "inside.png").symlink_to(folder / "carl" / "60.png")
    text = pack(FolderFaces(folder, 16), tmp_path / "a.rec")
    assert "7 images of 3 identities" in text and "skipped: 3 images that cannot be read" in text
    assert sorted(values(RecordFaces(tmp_path / "a.rec", 16, on_bad_image="raise"))) == [10, 20, 30, 40, 50, 60, 60]
    (folder / "l.txt").write_text("anna/10.png 0\n../secret.png 0\n")
    faces = ListFaces(folder / "l.txt", 16, on_bad_image="raise")
    message = "pack: every image must lie in the folder of the data set, got .*secret.png; allow_outside=True"
    with pytest.raises(UnreadableImage, match=message):
        pack(faces, tmp_path / "b.rec")
    pack(faces, tmp_path / "b.rec", allow_outside=True)
    assert values(RecordFaces(tmp_path / "b.rec", 16)) == [10, 99]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_during_an_epoch_names_itself(tmp_path, workers):
    faces = RecordFaces(insightface_layout(0).save(tmp_path), 16, on_bad_image="raise")
    loader = AttentionLoader(faces, 2, 1, num_workers=workers)
    os.truncate(faces._records.file.path, 100)
    with pytest.raises(UnreadableImage, match="train.rec: byte .* got a file that ends at byte 100"):
        next(iter(loader))


def test_headers_at_once_are_headers_one_by_one(tmp_path):
    """The arrays against the reader of single records, on whole files and with each byte of the heads damaged."""
    magic = struct.pack("<I", 0xCED7230A)
    writer = insightface_layout(2)
    writer.face(20, 4, png(70) + bytes(-len(png(70)) % 4) + magic + b"tail", flag=1)  # in two parts
    writer.face(21, 4, b"")
    path, rng = writer.save(tmp_path), np.random.default_rng(0)
    offsets = np.array([offset for _, offset in writer.idx])
    whole = bytes(writer.rec)
    for trial in range(200):
        content = bytearray(whole)
        for _ in range(trial % 4):
            at = int(rng.choice(offsets)) + int(rng.integers(40))
            content[at : at + 1] = bytes([rng.integers(256)])
        path.write_bytes(content[: len(content) - int(trial % 7 == 6) * int(rng.integers(200))])
        records, outcomes = RecordFile(path), []
        for read in (recordio_headers.read_headers, recordio_headers._one_by_one):
            found = Skipped()
            labels, places, ranges = read(records, offsets, found)
            outcomes.append((labels.tolist(), places.tolist(), ranges.tolist(), found.counts, found.examples))
        assert repr(outcomes[0]) == repr(outcomes[1])  # repr: NaN is NaN
        assert trial or outcomes[0][0] == [-1, 3, 3, 5, 5, 5, 9, -1, -1, -1, 4, -1]


def test_a_label_that_changes_under_a_cached_index_is_noticed(tmp_path):
    writer = insightface_layout(0)
    path = writer.save(tmp_path)
    faces = RecordFaces(path, 16)
    info = path.stat()
    writer.rec[writer.idx[2][1] + 12 : writer.idx[2][1] + 16] = struct.pack("<f", 5)
    path.write_bytes(writer.rec)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    for again in (faces, RecordFaces(path, 16)):
        message = f"{path}: byte {writer.idx[2][1]} must have the label that the index has, got 5 instead of 3"
        with pytest.raises(UnreadableImage, match=message):
            again[1]

"""Kept indexes of every format: used again, made anew when the source, the release or the index is another."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data import FolderFaces, ListFaces, LmdbFaces, RecordFaces, TarFaces, UnreadableImage, build_dataset
from attfc_cuda.data.sources import folder_index, index_cache, lists, lmdb, recordio_index, tar_index
from attfc_cuda.data.sources.recordio_writer import RecordWriter

FACES = [("3", 10), ("3", 20), ("5", 30), ("9", 40)]
SWAPPED = [("3", 40), ("3", 20), ("5", 30), ("9", 10)]  # as many bytes, other people


def png(value: int) -> bytes:
    """As many bytes for every value."""
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def values(dataset) -> list[int]:
    return [int(dataset[i].float().mean()) for i in range(len(dataset))]


def people(dataset) -> list[tuple[str, int]]:
    return [(dataset.identities[label], value) for label, value in zip(dataset.labels, values(dataset), strict=True)]


def write_rec(folder: Path, faces: list) -> Path:
    with RecordWriter(folder / "a.rec") as writer:
        for key, (identity, value) in enumerate(faces):
            writer.write(key, [float(identity)], png(value))
    return folder / "a.rec"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(folder: Path, faces: list) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, (identity, value) in enumerate(faces):
            add(archive, f"{number}.png", png(value))
            add(archive, f"{number}.cls", identity.encode())
    return folder / "a.tar"


def write_folder_tar(folder: Path, faces: list) -> Path:
    with tarfile.open(folder / "b.tar", "w") as archive:
        for number, (identity, value) in enumerate(faces):
            add(archive, f"{identity}/{number}.png", png(value))
    return folder / "b.tar"


def write_list(folder: Path, faces: list) -> Path:
    (folder / "a.txt").write_text("".join(f"{value}.png {identity}\n" for identity, value in faces))
    for _, value in faces:
        (folder / f"{value}.png").write_bytes(png(value))
    return folder / "a.txt"


def write_folders(folder: Path, faces: list) -> Path:
    shutil.rmtree(folder / "faces", ignore_errors=True)
    for identity, value in faces:
        (folder / "faces" / identity).mkdir(parents=True, exist_ok=True)
        (folder / "faces" / identity / f"{value}.png").write_bytes(png(value))
    return folder / "faces"


def write_lmdb(folder: Path, faces: list) -> Path:
    library = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with library.open(str(folder / "new.lmdb"), map_size=2**22, subdir=False) as env, env.begin(write=True) as writing:
        for number, (identity, value) in enumerate(faces):
            writing.put(f"{identity}/{number}".encode(), png(value))
    os.replace(folder / "new.lmdb", folder / "a.lmdb")  # LMDB opens a file once a process
    (folder / "new.lmdb-lock").unlink()
    return folder / "a.lmdb"


class Format(NamedTuple):
    """write: makes a source of (identity, value) in a folder. search: what looks through it, a module's function."""

    write: Callable[[Path, list], Path]
    open: Callable
    search: tuple


FORMATS = {
    "rec": Format(write_rec, RecordFaces, (recordio_index, "build_index")),
    "tar": Format(write_tar, TarFaces, (tar_index, "samples")),
    "tar of folders": Format(write_folder_tar, TarFaces, (tar_index, "samples")),
    "list": Format(write_list, ListFaces, (lists.ListFaces, "_read")),
    "folders": Format(write_folders, FolderFaces, (folder_index._Search, "index")),
    "lmdb": Format(write_lmdb, LmdbFaces, (lmdb, "_walk")),
}


@pytest.fixture(params=list(FORMATS))
def form(request) -> Format:
    return FORMATS[request.param]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "attfc_cuda"


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def searches(monkeypatch) -> Callable[[Format], int]:
    """How often a format's search has begun since the last call for it."""
    counts: dict = {}

    def count(form: Format) -> int:
        where, name = form.search
        if form.search not in counts:
            found, counts[form.search] = getattr(where, name), 0

            def counting(*arguments):
                counts[form.search] += 1
                return found(*arguments)

            monkeypatch.setattr(where, name, counting)
        number, counts[form.search] = counts[form.search], 0
        return number

    return count


def kept(source: Path) -> Path:
    return source.with_name(source.name + index_cache.SUFFIX)


def same(one, other) -> bool:
    return one.report() == other.report() and people(one) == people(other) and one.where(1) == other.where(1)


def test_the_second_opening_searches_nothing(form, place, searches):
    source = form.write(place, FACES)
    searches(form)
    first = form.open(source, 16)
    assert searches(form) >= 1 and people(first) == FACES and kept(source).is_file()
    again = form.open(source, 16)
    assert searches(form) == 0 and same(again, first)
    assert people(pickle.loads(pickle.dumps(again))) == FACES
    assert not list(place.glob(".*"))


def test_a_second_opening_reads_no_byte_of_a_shard_and_no_identity_folder(place, monkeypatch):
    shard, root = write_tar(place, FACES), write_folders(place, FACES)
    faces = TarFaces(shard, 16), FolderFaces(root, 16)
    read, scandir, scanned = index_cache.CheckedFile.read, os.scandir, []

    def scanning(path):
        scanned.append(path)
        return scandir(path)

    def reading(file, start, length):
        assert file.path != shard
        return read(file, start, length)

    monkeypatch.setattr(index_cache.CheckedFile, "read", reading)
    monkeypatch.setattr(os, "scandir", scanning)
    assert TarFaces(shard, 16).labels.tolist() == faces[0].labels.tolist()
    assert FolderFaces(root, 16).labels.tolist() == faces[1].labels.tolist() and scanned == [root]


def test_another_source_of_the_same_size_is_noticed(form, place, searches):
    source = form.write(place, FACES)
    size, _ = source.stat().st_size, form.open(source, 16)
    form.write(place, SWAPPED)
    assert source.stat().st_size == size
    searches(form)
    assert sorted(people(form.open(source, 16))) == sorted(SWAPPED) and searches(form) >= 1
    assert sorted(people(form.open(source, 16))) == sorted(SWAPPED) and searches(form) == 0


def test_a_source_that_was_cut_is_noticed(form, place):
    source = form.write(place, FACES)
    before = form.open(source, 16)
    if source.is_dir():
        (source / "5" / "30.png").unlink()
        after = people(form.open(source, 16))
        assert after == [face for face in FACES if face != ("5", 30)]
        return
    os.truncate(source, source.stat().st_size // 3)
    try:
        after = form.open(source, 16)
    except ValueError as cause:
        assert form.open is LmdbFaces and str(source) in str(cause)
        return
    found = people(after)
    assert found == FACES[: len(found)] and len(found) < len(before)
    assert form.open is ListFaces or "skipped: " in after.report()


def with_head(content: bytes, change: Callable[[dict], dict]) -> bytes:
    """A kept index with another JSON, and a checksum that fits."""
    magic, length, _ = struct.unpack_from("<8sII", content)
    text = json.dumps(change(json.loads(content[16 : 16 + length]))).encode()
    body = text + content[16 + length :]
    return struct.pack("<8sII", magic, len(text), zlib.crc32(body)) + body


def test_a_damaged_index_or_one_of_another_version_is_made_anew(form, place, searches):
    source = form.write(place, FACES)
    first = form.open(source, 16)
    whole = kept(source).read_bytes()
    others = [
        b"", b"x", whole[:15], whole[:-1], whole + b"\0", b"ATTFCIX2" + whole[8:], whole[:60] + b"\xff" + whole[61:],
        whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], whole[:8] + b"\xff" * 4 + whole[12:],
        with_head(whole, lambda head: {**head, "of": {**head["of"], "release": "0.0"}}),
        with_head(whole, lambda head: {**head, "arrays": head["arrays"][1:]}),
        with_head(whole, lambda head: {**head, "arrays": [[name, "<f8", n] for name, _, n in head["arrays"]]}),
        with_head(whole, lambda head: {"of": head["of"]}),
    ]  # fmt: skip
    for other in others if form.open is not LmdbFaces else others[-4:-2]:  # each starts a process
        kept(source).write_bytes(other)
        searches(form)
        assert same(form.open(source, 16), first) and searches(form) >= 1, other[:200]
        assert kept(source).read_bytes() == whole


def taken_apart(index: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What a kept index is of, and its arrays."""
    whole = index.read_bytes()
    head = json.loads(whole[16 : 16 + struct.unpack_from("<I", whole, 8)[0]])
    arrays, at = {}, len(whole) - sum(np.dtype(dtype).itemsize * count for _, dtype, count in head["arrays"])
    for name, dtype, count in head["arrays"]:
        arrays[name] = np.frombuffer(whole, dtype, count, at)
        at += arrays[name].nbytes
    return head["of"], arrays


def test_arrays_that_do_not_fit_each_other_are_refused(form, place, searches):
    """With a right checksum: as of a stranger's index."""
    source = form.write(place, FACES)
    first = form.open(source, 16)
    of, arrays = taken_apart(kept(source))
    changes = [(name, change) for name in arrays for change in ("shorter", "negative", "huge")]
    for name, change in changes if form.open is not LmdbFaces else changes[::4]:
        other = arrays[name].copy()
        if change == "shorter":
            other = other[:-1]
        elif other.dtype == np.uint8:
            continue
        else:
            other[-1] = -1 if change == "negative" else np.iinfo(other.dtype).max
        if change == "huge" and (name == "labels" or (name == "identities" and "names" not in arrays)):
            continue  # a number like any other
        index = index_cache.Index({**arrays, name: other})
        index_cache._write(kept(source), source, of, index)
        searches(form)
        assert same(form.open(source, 16), first) and searches(form) >= 1, (name, change)


def test_where_the_folder_cannot_be_written_the_users_is_used(form, place, caches, searches):
    source = form.write(place, FACES)
    kept(source).mkdir()  # permissions do not bind the superuser: a folder is in the way
    first = form.open(source, 16)
    assert len(list(caches.iterdir())) == 1 and not list(place.glob(".*"))
    searches(form)
    assert same(form.open(source, 16), first) and searches(form) == 0


@pytest.mark.parametrize("reason", ["no place", "full disk", "no home"])
def test_where_nothing_can_be_written_only_the_index_is_lost(form, place, caches, searches, reason, monkeypatch):
    source = form.write(place, FACES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    searches(form)
    try:
        if reason == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # a write beyond it fails as on a full disk
        else:
            kept(source).mkdir()
            caches.parent.write_text("a file where a folder should be")
        if reason == "no home":
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError("no home"))))
        found = [people(form.open(source, 16)) for _ in range(2 if form.open is not LmdbFaces else 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(faces == FACES for faces in found) and searches(form) >= len(found)
    assert not kept(source).is_file() and not [path for path in place.rglob(".*") if path.is_file()]


def test_whoever_opens_while_an_index_is_written_sees_none_of_it(form, place, searches, monkeypatch):
    source, replace, inner = form.write(place, FACES), os.replace, []
    searches(form)

    def replacing(part, target):
        if not inner:
            inner.append(None)
            inner[0] = people(form.open(source, 16))  # the first one's index is whole, but not yet in its place
        replace(part, target)

    monkeypatch.setattr(os, "replace", replacing)
    assert people(form.open(source, 16)) == FACES and inner == [FACES] and searches(form) >= 2
    assert people(form.open(source, 16)) == FACES and searches(form) == 0
    assert not list(place.glob(".*"))


def test_many_at_once(place):
    """Threads, so that the process's number does not keep their parts apart."""
    source, together = write_tar(place, FACES * 50), threading.Barrier(8)

    def open_together(_: int) -> list:
        together.wait()
        return TarFaces(source, 16).labels.tolist()

    for _ in range(5):
        kept(source).unlink(missing_ok=True)
        with ThreadPoolExecutor(8) as pool:
            labels = list(pool.map(open_together, range(8)))
        assert all(found == labels[0] for found in labels) and len(labels[0]) == 200
        assert sorted(path.name for path in place.iterdir()) == ["a.tar", "a.tar.attfc_index"]


@pytest.mark.parametrize("name", ["rec", "tar", "list"])
def test_damage_is_counted_or_raised_out_of_a_kept_index_too(name, place, searches):
    form = FORMATS[name]
    source = form.write(place, FACES)
    content = source.read_bytes()
    label, bad = {
        "rec": (struct.pack("<f", 5.0), struct.pack("<f", 0.5)),
        "tar": (b"5".ljust(512, b"\0"), b"x"),
        "list": (b"5\n", b"x"),
    }[name]
    at = content.index(label)
    source.write_bytes(content[:at] + bad + content[at + len(bad) :])
    first = form.open(source, 16)
    searches(form)
    again = form.open(source, 16)
    assert searches(form) == 0 and same(again, first) and "skipped: 1 " in again.report()
    assert [value for _, value in people(again)] == [10, 20, 40]
    with pytest.raises(ValueError, match=str(source)):
        form.open(source, 16, on_bad_image="raise")
    # Moved together, they are named as they are called there.
    moved = place / "moved"
    moved.mkdir()
    source.rename(moved / source.name)
    kept(source).rename(kept(moved / source.name))
    assert str(moved / source.name) in form.open(moved / source.name, 16).report().split("skipped")[1]


def test_a_shard_that_changes_under_its_index_is_named_when_it_is_read(place):
    source = write_tar(place, FACES)
    info, faces = source.stat(), TarFaces(source, 16)
    content = source.read_bytes()
    with tarfile.open(source) as archive:
        header = next(member.offset for member in archive if member.name == "2.png")
    block = bytearray(content[header : header + 512])
    block[:5] = b"7.png"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    source.write_bytes(content[:header] + block + content[header + 512 :])
    os.utime(source, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert int(faces[1].float().mean()) == 20
    with pytest.raises(UnreadableImage, match=f"byte {header} must be the header that was indexed, got another: has"):
        faces[2]


@pytest.mark.parametrize("name", ["tar", "list"])
def test_other_labels_of_the_same_size_and_time_are_noticed(name, place):
    """As cp -p, rsync -t and tar -x write them over the ones before; rec: each label is compared when it is read."""
    for faces in (FACES, [("5", 10), ("9", 20), ("3", 30), ("3", 40)]):
        source = FORMATS[name].write(place, faces)
        os.utime(source, (1_700_000_000, 1_700_000_000))
        assert people(FORMATS[name].open(source, 16)) == faces


@pytest.mark.parametrize("name", ["tar", "list"])
def test_a_link_that_leads_elsewhere_is_noticed(name, place, monkeypatch):
    """Also where both files have the same size and times, as of one archive on a disk that keeps whole seconds."""
    monkeypatch.setattr({"tar": tar_index, "list": lists}[name], "stamp", lambda info: [info.st_size])
    link = place / f"link{FORMATS[name].write(place, FACES).suffix}"
    for version, faces in (("one", FACES), ("two", [("5", 10), ("9", 20), ("3", 30), ("3", 40)])):
        (place / version).mkdir()
        source = FORMATS[name].write(place / version, faces)
        os.utime(source, (1_700_000_000, 1_700_000_000))
        link.unlink(missing_ok=True)
        link.symlink_to(source)
        assert people(FORMATS[name].open(link, 16, **({"root": place} if name == "list" else {}))) == faces


def test_two_identity_lists_of_one_name_size_and_time_are_told_apart(place):
    root = write_folders(place, FACES)
    for fold, identity, expected in (("one", "3", FACES[:2]), ("two", "9", FACES[3:])):
        (place / fold).mkdir()
        (place / fold / "train.txt").write_text(f"{identity}\n")
        os.utime(place / fold / "train.txt", (1_700_000_000, 1_700_000_000))
        assert people(FolderFaces(root, 16, place / fold / "train.txt")) == expected


@pytest.mark.parametrize(("name", "at", "other"), [("files", 0, b"../../"), ("folders", 2, b".")])
def test_a_strangers_index_does_not_lead_out_of_the_folder(name, at, other, place, searches):
    source = write_folders(place, FACES)
    FolderFaces(source, 16)
    of, arrays = taken_apart(kept(source))
    block = arrays[name].copy()
    block[at : at + len(other)] = np.frombuffer(other, np.uint8)
    if name == "folders":  # its time fits
        arrays["times"] = np.append(arrays["times"][:-1], source.stat().st_mtime_ns)
    index_cache._write(kept(source), source, of, index_cache.Index({**arrays, name: block}))
    searches(FORMATS["folders"])
    assert people(FolderFaces(source, 16)) == FACES and searches(FORMATS["folders"]) == 1


def test_another_list_or_label_field_has_an_index_of_its_own(place, searches):
    root, shard = write_folders(place, FACES), write_tar(place, FACES)
    for name, identities in (("one.txt", "3\n"), ("two.txt", "5\n9\n")):
        (place / name).write_text(identities)
    for _ in range(2):
        searches(FORMATS["folders"]), searches(FORMATS["tar"])
        assert people(FolderFaces(root, 16, place / "one.txt")) == FACES[:2]
        assert people(FolderFaces(root, 16, place / "two.txt")) == FACES[2:]
        assert people(FolderFaces(root, 16)) == FACES
        assert people(TarFaces(shard, 16, label_field="cls")) == people(TarFaces(shard, 16)) == FACES
    assert searches(FORMATS["folders"]) == searches(FORMATS["tar"]) == 0
    (place / "one.txt").write_text("9\n")
    assert people(FolderFaces(root, 16, place / "one.txt")) == FACES[3:]


def test_a_database_that_was_copied_with_its_index_is_looked_through(place, searches):
    """LMDB's library trusts its file, so that one that came with a stranger's index may not be believed."""
    source = write_lmdb(place, FACES)
    LmdbFaces(source, 16)
    (place / "copy").mkdir()
    for path in (source, kept(source)):
        shutil.copy2(path, place / "copy" / path.name)
    searches(FORMATS["lmdb"])
    assert people(LmdbFaces(place / "copy" / source.name, 16)) == FACES and searches(FORMATS["lmdb"]) == 1


def test_what_the_system_refused_to_read_is_asked_for_again(place, monkeypatch):
    root, shard = write_folders(place, FACES), write_tar(place, FACES)
    scandir, pread = os.scandir, os.pread

    def refuse_folder(path):
        if os.fspath(path) == str(root / "5"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def refuse_end(descriptor, length, start):
        if start > shard.stat().st_size // 2 and os.readlink(f"/proc/self/fd/{descriptor}") == str(shard):
            raise OSError(5, "Input/output error")
        return pread(descriptor, length, start)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse_folder)
        patch.setattr(os, "pread", refuse_end)
        assert len(FolderFaces(root, 16)) == 3 and len(TarFaces(shard, 16)) < 4
    assert people(FolderFaces(root, 16)) == people(TarFaces(shard, 16)) == FACES


def test_a_source_is_left_until_its_next_change_has_another_time(monkeypatch):
    slept = []
    monkeypatch.setattr(index_cache.time, "sleep", slept.append)
    monkeypatch.setattr(index_cache.time, "time_ns", lambda: 10**18)
    fine = ((1, [0.019999999]), (15_000_000, [0.005]), (20_000_000, []), (10**12 + 1, []), (1 - 10**12, [0.02]))
    # A time of whole seconds may be that of a disk that keeps no others.
    coarse = ((0, [2.0]), (10**9, [1.0]), (2 * 10**9, []), (10**12, []), (-(10**12), [2.0]))
    for age_ns, expected in (*fine, *coarse):
        slept.clear()
        assert index_cache.settle(10**18 - age_ns) == 10**18 - age_ns and slept == expected


def test_folders_of_the_future_are_waited_for_once(place, monkeypatch):
    """As a wrong clock or time zone makes them: a wait for each would be hours for millions."""
    source, slept = write_folders(place, FACES), []
    for folder in source.iterdir():
        os.utime(folder, ns=(2**61, 2**61))
    monkeypatch.setattr(folder_index, "settle", slept.append)
    assert people(FolderFaces(source, 16)) == FACES and slept == [2**61]


@pytest.mark.parametrize(("name", "bytes_an_image"), [("rec", 12), ("tar", 13)])
def test_bytes_kept_for_each_image(name, bytes_an_image, place):
    source = FORMATS[name].write(place, sorted(FACES * 25))
    for _ in range(2):  # searched, and from the kept index
        faces = FORMATS[name].open(source, 16)
        arrays = {id(value): value for value in vars(faces).values() if isinstance(value, np.ndarray)}
        assert sum(array.nbytes for array in arrays.values() if len(array) == 100) == 100 * bytes_an_image
        assert {array.base.nbytes if isinstance(array.base, np.ndarray) else 0 for array in arrays.values()} <= {
            0, *(array.nbytes for array in arrays.values())
        }  # fmt: skip


def test_a_wild_card_leaves_kept_indexes_out(place):
    source = write_tar(place, FACES)
    pattern = str(source.with_name("a*"))
    for _ in range(2):
        assert people(build_dataset(pattern, 16)) == FACES
    assert kept(source).is_file()


def test_a_list_of_names_keeps_them(place, searches):
    source = write_list(place, FACES)
    source.write_text("".join(f"{value}.png person_{identity}\n" for identity, value in FACES))
    form = FORMATS["list"]
    first = form.open(source, 16)
    searches(form)
    again = form.open(source, 16)
    assert searches(form) == 0 and same(again, first)
    assert people(again) == [(f"person_{identity}", value) for identity, value in FACES]

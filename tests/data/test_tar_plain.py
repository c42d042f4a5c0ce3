"""Headers taken together give what one at a time gives, in any shard."""

import io
import random
import tarfile

import pytest

from attfc_cuda.data import TarFaces
from attfc_cuda.data.sources import tar_samples
from attfc_cuda.data.sources.checked_file import CheckedFile
from attfc_cuda.data.sources.tar_plain import FEW_HEADERS, plain_run
from attfc_cuda.data.sources.tar_samples import LABEL_FIELDS, samples


def pack(path, members, form=tarfile.USTAR_FORMAT, mtime=0):
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mtime = mtime
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def numbered(count, first=0):
    for k in range(first, first + count):
        yield f"{k:06}.jpg", b"J" * (k % 1500)
        yield f"{k:06}.cls", b"%d" % (k // 3)


def found(path, label_field="auto"):
    """All that a shard gives, and is told of it; or its error."""
    told = []

    def damage(what, shard, *rest):
        told.append((what, *map(str, rest)))

    try:
        blocks = list(samples(CheckedFile(path), label_field, lambda *what: told.append(what), damage))
    except ValueError as cause:
        return str(cause)
    return [image for block in blocks for image in zip(*block, strict=True)], told


def one_at_a_time(path, label_field, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tar_samples, "plain_run", lambda *_: None)
        return found(path, label_field)


ODD = (
    [("x/odd.jpg", b"1")],
    [("odd.txt", b"1"), ("odd.jpg", b"2"), ("odd.cls", b"3")],
    [("odd.jpg", b"1"), (".hidden", b"2"), ("odd.cls", b"3")],  # a hidden file ends no sample
    [("odd.jpg", b"1"), ("odd.cls", b"3"), (".hidden", b"2"), ("odd.json", b'{"label": 4}')],
    [("x/odd.jpg", b"1"), (".hidden", b"2"), ("x/odd.cls", b"3")],
    [("x/odd.jpg", b"1"), ("x/@eaDir/odd.jpg", b"2"), ("x/odd.cls", b"3")],
    [("x/odd.jpg", b"1"), ("x/odd.json", "nowhere"), ("x/odd.cls", b"3")],
    [("odd.jpg", b"1"), ("odd.jpg", b"2"), ("odd.cls", b"3")],
    [("odd.cls", b"3"), ("odd.png", b"1")],
    [("odd.jpg", b"1"), ("odd.cls", b"no number")],
    [("odd.jpg", b"1"), ("odd.cls", b"9" * 19)],
    [("odd.jpg", b"1"), ("odd.cls", b" 7\n")],
    [("odd.jpg", b"1"), ("odd.cls", b"7"), ("odd.json", b'{"label": 7}')],
    [("odd.jpg", b"1"), ("odd.cls", b"7"), ("odd.left.jpg", b"2")],
    [("odd.left.jpg", b"1"), ("odd.right.jpg", b"1"), ("odd.cls", b"5")],
    [("odd.JPG", b"1"), ("odd.CLS", b"5")],
    [("./odd.jpg", b"1"), ("./odd.cls", b"5")],
    [("odd.jpg", "000001.jpg"), ("odd.cls", b"5")],
    [("odd", b"1"), ("odd.jpg", b"1"), ("odd.cls", b"5")],
    [("o" * 120 + ".jpg", b"1"), ("o" * 120 + ".cls", b"5")],
    [("f" * 90 + "/" + "o" * 60 + ".jpg", b"1")],
    [("dir", None), ("odd.jpg", b"1"), ("dir", None), ("odd.cls", b"5")],
    [("dir/odd.jpg", b"1"), ("dir/odd.cls", b"5")],
    [("dir.d/odd.jpg", b"1"), ("dir.d/odd.cls", b"5")],
    [("odd.cls", b"5")],
    [("odd.jpg", b"1"), ("odd.cls", b"5" + b" " * 5000)],
    [("ä.jpg", b"1"), ("ä.cls", b"5")],
)
CONTRADICTING = 3
FOLDERS = [(f"{k // 4:03}/{k:04}.png", b"P" * k) for k in range(90)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("odd", range(len(ODD)))
def test_an_odd_sample_is_found_as_by_itself(tmp_path, form, odd, monkeypatch):
    odd_members = ODD[odd]
    if form == tarfile.USTAR_FORMAT:
        odd_members = [member for member in odd_members if "o" * 120 not in member[0]]
    shards = ([*numbered(80), *odd_members, *numbered(80, 80)], [*FOLDERS, *odd_members, *FOLDERS])
    for number, listed in enumerate(shards):
        path = pack(tmp_path / f"{number}.tar", listed, form, mtime=number + 0.5)  # of which pax makes headers
        for label_field in LABEL_FIELDS:
            assert found(path, label_field) == one_at_a_time(path, label_field, monkeypatch)
        whole = found(path)
        assert "name one label" in whole if odd == CONTRADICTING else len(whole[0]) >= (160, 180)[number]


def test_damage_anywhere_is_found_as_by_itself(tmp_path, monkeypatch):
    rng = random.Random(5)
    whole = pack(tmp_path / "whole.tar", [*numbered(60), *FOLDERS[:40]], tarfile.GNU_FORMAT).read_bytes()
    blocks = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    path = tmp_path / "damaged.tar"
    for _ in range(150):
        data = bytearray(whole)
        at = rng.choice(blocks)
        place, count = rng.choice(((0, 100), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155), (0, 512)))
        data[at + place + rng.randrange(count)] = rng.choice(b"\0 07-8x./\xff")
        if rng.random() < 0.5:  # a whole header all the same
            head = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
            data[at + 148 : at + 156] = b"%06o\0 " % sum(head)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data or b"\0")
        for label_field in ("auto", "folder"):
            assert found(path, label_field) == one_at_a_time(path, label_field, monkeypatch)


def test_nearly_all_samples_are_taken_together(tmp_path, monkeypatch):
    """What is slow takes few of them, also after an odd one."""
    path = pack(tmp_path / "a.tar", [*numbered(3000), *ODD[4], *numbered(3000, 3000)], tarfile.PAX_FORMAT, mtime=0.5)
    alone = []
    images = tar_samples._Sample.images
    monkeypatch.setattr(tar_samples._Sample, "images", lambda sample: alone.append(sample.key) or images(sample))
    faces = TarFaces(path, 16)
    assert len(faces) == 6001 and len(alone) <= 20  # one of the two odd ones has no identity


def test_a_run_says_where_it_ends(tmp_path):
    path = pack(tmp_path / "a.tar", [*numbered(100), ("odd.txt", b""), *numbered(1, 100)])
    file = CheckedFile(path)
    run = plain_run(file, 0, "auto", FEW_HEADERS)
    assert run.whole and len(run.starts) == FEW_HEADERS // 2 - 1
    following = plain_run(file, run.end, "auto", 10 * FEW_HEADERS)
    assert not following.whole and run.starts[-1] < run.end < following.starts[0]
    assert len(run.starts) + len(following.starts) == 99  # the last one might go on in what follows
    assert plain_run(file, following.end, "auto", FEW_HEADERS) is None
    assert plain_run(file, 0, "json", FEW_HEADERS) is None

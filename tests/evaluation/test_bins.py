"""InsightFace's .bin sets: whatever pickled them, they read back; a pickle that would run code is refused."""

import io
import os
import pickle
import pickletools
import re
import struct

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.evaluation import read_bin, verify
from attfc_cuda.evaluation.restricted_pickle import Array, read_pickle


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def python2_pickle(images, same):
    """What Python 2's pickle wrote with protocol 2: strings as BINSTRING, bools as NEWTRUE; restated by hand."""
    parts = [b"\x80\x02", b"]q\x00("]
    for image in images:
        parts.append(b"T" + struct.pack("<i", len(image)) + image)
    parts.append(b"e]q\x01(" + b"".join(b"\x88" if value else b"\x89" for value in same) + b"e\x86q\x02.")
    return b"".join(parts)


IMAGES = [png(value) for value in (10, 20, 30, 40, 10, 60)]
SAME = [True, False, True]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "kind", ["bytes", "arrays", "numpy bools", "bool array", "tuple", "columns", "rows", "numbers", "number array"]
)
def test_whatever_pickled_it_it_reads_back(tmp_path, protocol, kind):
    images, same = IMAGES, SAME
    if kind == "arrays":
        images = [np.frombuffer(image, np.uint8) for image in IMAGES]
    elif kind == "numpy bools":
        same = [np.bool_(value) for value in SAME]
    elif kind == "bool array":
        same = np.array(SAME)
    elif kind == "columns":  # [N, 1] images, [P, 1] truth values
        images, same = [np.frombuffer(image, np.uint8)[:, None] for image in IMAGES], np.array(SAME)[:, None]
    elif kind == "rows":
        images, same = [np.frombuffer(image, np.uint8)[None] for image in IMAGES], [np.array([v]) for v in SAME]
    elif kind == "numbers":
        same = [int(value) for value in SAME]
    elif kind == "number array":
        same = np.array(SAME, dtype=np.int32 if protocol % 2 else np.int64)
    elif kind == "tuple":
        images, same = tuple(IMAGES), tuple(SAME)
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((images, same), protocol=protocol))
    check(read_bin(path, 16), path)


def test_a_file_of_python_2(tmp_path):
    path = tmp_path / "lfw.bin"
    path.write_bytes(python2_pickle(IMAGES, SAME))
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (IMAGES, SAME)  # the restatement is a pickle
    check(read_bin(path, 16), path)


def check(data, path):
    name, images, pairs, *_ = data
    assert name == "lfw" and len(images) == 5  # the image that is there twice is kept once
    shades = [int(images[i].float().mean()) for i in range(5)]
    assert [(shades[a], shades[b]) for a, b in zip(pairs.a, pairs.b, strict=True)] == [(10, 20), (30, 40), (10, 60)]
    assert pairs.same.tolist() == SAME and pairs.same.dtype == bool and pairs.fold.tolist() == [0, 1, 2]
    assert images[0].shape == (3, 16, 16)


def test_folds_are_those_of_insightface(tmp_path):
    from sklearn.model_selection import KFold

    count = 37
    (tmp_path / "a.bin").write_bytes(pickle.dumps(([b"x%d" % k for k in range(2 * count)], [True] * count)))
    folds = read_bin(tmp_path / "a.bin").pairs.fold
    for number, (_, test) in enumerate(KFold(10, shuffle=False).split(np.arange(count))):
        assert np.flatnonzero(folds == number).tolist() == test.tolist()


class Evil:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def poison(folder):
    target = folder / "was_run"
    return {
        "os.system": (Evil(os.system, f"touch {target}"), "posix.system"),
        "eval": (Evil(eval, f"open({str(target)!r}, 'w')"), "builtins.eval"),
        "open": (Evil(open, str(target), "w"), "io.open"),
        "getattr": (Evil(getattr, "x", "upper"), "builtins.getattr"),
        "object": (Evil(object), "builtins.object"),
        "np.load": (Evil(np.load, str(target)), "numpy.load"),
        "dict": ({"a": 1}, "the opcode EMPTY_DICT"),
        "set": ({1}, "the opcode EMPTY_SET"),
        "an object array": (np.array([Evil(os.system, f"touch {target}")]), "O8"),
        "a structured array": (np.zeros(2, [("a", "u1")]), "V1"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("case", list(poison(__import__("pathlib").Path("x"))))
def test_a_pickle_that_would_run_code_is_refused(tmp_path, case, protocol):
    value, what = poison(tmp_path)[case]
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(([*IMAGES, value], SAME), protocol=protocol))
    rule = (
        r"read_bin: path must be a verification set, got .*evil.bin: byte \d+ must hold bytes, numbers, lists, tuples"
    )
    with pytest.raises(ValueError, match=rule) as raised:
        read_bin(path)
    if protocol >= 2 or "opcode" not in what:
        assert what in str(raised.value) or "where a" in str(raised.value) or "__builtin__" in str(raised.value)
    assert "nothing was run" in str(raised.value) and not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "hold data, got an empty file"),
        (b"hello", r"byte 0 must go on as a pickle does"),
        (pickle.dumps((IMAGES, SAME))[:-30], "must go on as a pickle does"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"x", "must go on as a pickle does"),  # 2^63 bytes
        (b"\x80\x02r\xff\xff\xff\xff.", "must go on as a pickle does"),  # a memo of 2^32 entries
        (b"\x80\x02]r\xff\xff\xff\xff\x88\x86.", "must hold a list of booleans, got bool"),
        (b"(" * 100_000 + b".", "must go on as a pickle does"),
        (b"]" * 2 + b"a" * 5 + b".", "must"),
        (b"I" + b"9" * 100_000 + b"\n.", "must go on as a pickle does"),
        (b"cposix\nsystem\n.", r"byte 0 must hold bytes, .*nothing was run\), got posix.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", r"byte 17 must .*nothing was run\), got posix.system"),
        (b"Pid\n.", r"the opcode PERSID"),
        (b"\x82\x01.", r"the opcode EXT1"),
        (b"(cnumpy\nndarray\no.", r"the opcode OBJ"),
        (b"cnumpy\nndarray\n)\x81.", r"the opcode NEWOBJ"),
        (b"cnumpy\nndarray\n)R.", r"a call of ndarray"),
        (b"c_codecs\nencode\n(Vabc\nVzip\ntR.", r"a call of encode"),
        (pickle.dumps(7), "must hold images and booleans, got int"),
        (pickle.dumps((1, 2)), "must hold a list of images, got int"),
        (pickle.dumps((IMAGES, "yes")), "must hold a list of booleans, got str"),
        (pickle.dumps(([*IMAGES[:5], "text"], SAME)), "must hold encoded images as bytes, got a str as image 5"),
        (pickle.dumps(([*IMAGES[:5], np.zeros((4, 4), np.uint8)], SAME)), "as bytes, got a Array as image 5"),
        (pickle.dumps((IMAGES, [True, "x", False])), "must hold booleans, got a str as boolean 1"),
        (pickle.dumps((IMAGES, [True, 2, False])), "must hold booleans, got a int as boolean 1"),
        (pickle.dumps((IMAGES, SAME[:2])), "must hold two images for each boolean, got 6 for 2"),
        (pickle.dumps(([], [])), "must hold two images for each boolean, got 0 for 0"),
    ],
)  # fmt: skip
def test_what_is_no_verification_set_is_named(tmp_path, content, message):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_bin(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_plain_values_are_what_pickle_reads(tmp_path):
    value = [1, -5, 2**40, -(2**70), 1.5, None, True, b"ab", "text", (1,), (1, 2), (), (1, 2, 3, 4), [[]], "ü"]
    for protocol in range(6):
        (tmp_path / "a").write_bytes(pickle.dumps(value, protocol=protocol))
        assert read_pickle(tmp_path / "a") == value, protocol
        array = np.arange(6, dtype="<i4").reshape(2, 3)
        (tmp_path / "a").write_bytes(pickle.dumps([array, array[0, 1]], protocol=protocol))
        assert read_pickle(tmp_path / "a") == [Array((2, 3), "i4", array.tobytes()), Array((), "i4", b"\1\0\0\0")]


def test_no_opcode_of_the_format_reaches_python(tmp_path):
    """Every opcode there is, with values below it on the stack: an error or a plain value, never anything else."""
    for opcode in pickletools.opcodes:
        content = b"\x80\x02(I1\n(I2\nK\x03" + opcode.code.encode("latin-1") + b"\0" * 16 + b"\n\n."
        (tmp_path / "a").write_bytes(content)
        try:
            value = read_pickle(tmp_path / "a")
        except DamagedFile as cause:
            assert re.search(r": byte \d+ must ", str(cause))
        else:
            assert isinstance(value, int | float | str | bytes | list | tuple | bool | None), opcode.name


def test_a_set_that_is_read_can_be_judged(tmp_path):
    count = 40
    (tmp_path / "a.bin").write_bytes(pickle.dumps(([b"%d" % k for k in range(2 * count)], [True, False] * 20)))
    pairs = read_bin(tmp_path / "a.bin").pairs
    result = verify(np.where(pairs.same, 0.9, 0.1), pairs.same, pairs.fold)
    assert result.accuracy == 1.0 and result.num_folds == 10

"""LFW's own pair lists, and every set of a folder through the command line."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from attfc_cuda import cli
from attfc_cuda.evaluation import find_suite, read_pairs


def png(random):
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def lfw(tmp_path):
    random = np.random.default_rng(0)
    for name in ("Ann_A", "Bob", "Cy"):
        (tmp_path / "lfw" / name).mkdir(parents=True)
        for number in range(1, 5):
            (tmp_path / "lfw" / name / f"{name}_{number:04d}.png").write_bytes(png(random))
    return tmp_path


FOLD = "Ann_A\t1\t2\nBob\t3\t4\nAnn_A\t1\tBob\t2\nBob\t1\tCy\t4\n"


def test_lfw_pairs(lfw):
    (lfw / "pairs.txt").write_text("2\t2\n" + FOLD + FOLD.replace("1", "3"))
    pairs = read_pairs(lfw / "pairs.txt", lfw / "lfw")
    assert pairs.paths_a[0] == lfw / "lfw/Ann_A/Ann_A_0001.png" and pairs.paths_b[0] == lfw / "lfw/Ann_A/Ann_A_0002.png"
    assert pairs.paths_a[7] == lfw / "lfw/Bob/Bob_0003.png" and pairs.paths_b[7] == lfw / "lfw/Cy/Cy_0004.png"
    assert pairs.same.tolist() == [True, True, False, False] * 2 and pairs.fold.tolist() == [0] * 4 + [1] * 4


def test_lfw_development_lists_are_dealt_into_folds(lfw):
    genuine = "".join(f"Ann_A\t{a}\t{b}\n" for a in range(1, 5) for b in range(1, 5) if a != b)
    impostors = "".join(f"Ann_A\t{a}\tBob\t{b}\n" for a in range(1, 4) for b in range(1, 5))
    (lfw / "pairsDevTest.txt").write_text("12\n" + genuine + impostors)
    pairs = read_pairs(lfw / "pairsDevTest.txt", lfw / "lfw")
    assert pairs.same.sum() == 12 and pairs.fold.tolist() == [k % 10 for k in range(24)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2\t2\n" + FOLD, r"pairs.txt must hold 8 pairs, as its first line says, got 4"),
        ("1\t1\n" + FOLD, r"line 3 of .*pairs.txt must hold a name and a number, twice, got 'Bob\\t3\\t4'"),
        ("1\t2\nAnn_A\t1\n", r"line 2 of .*pairs.txt must hold a name and two numbers, got 'Ann_A\\t1'"),
        ("1\t0\nBob\t1\tCy\t2\n", r"line 1 of .*pairs.txt must count at least one pair, .*, got '1\\t0'"),
        ("0\t2\n", r"line 1 of .*pairs.txt must count at least one pair, and at least one fold"),
        ("0\n", r"line 1 of .*pairs.txt must count at least one pair"),
        ("\xff", r"must hold image_a, image_b, same and perhaps fold, .*, got 1 columns"),
    ],
)
def test_a_wrong_lfw_list_is_named(lfw, text, message):
    (lfw / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=f"^read_pairs: .*{message}"):
        read_pairs(lfw / "pairs.txt", lfw / "lfw")
    (lfw / "pairs.txt").write_bytes(b"1\t1\n\xff")
    with pytest.raises(
        ValueError, match="read_pairs: .*pairs.txt must be UTF-8 text, got invalid start byte at byte 4"
    ):
        read_pairs(lfw / "pairs.txt", lfw / "lfw")
    (lfw / "pairs.txt").write_text("1\t1\nAnn_A\t1\t9\nAnn_A\t1\tBob\t1\n")
    with pytest.raises(FileNotFoundError, match=r"name existing images, got .*Ann_A_0009.png, which does not exist"):
        read_pairs(lfw / "pairs.txt", lfw / "lfw")


def test_a_pair_of_an_image_with_itself_is_left_out(lfw):
    (lfw / "pairs.txt").write_text("2\t2\n" + FOLD.replace("2", "1", 1) + FOLD.replace("1", "3"))
    with pytest.warns(UserWarning, match="1 pairs of an image with itself are left out, the first is .* in line 2 of"):
        pairs = read_pairs(lfw / "pairs.txt", lfw / "lfw")
    assert pairs.same.tolist() == [True, False, False, True, True, False, False]


@pytest.fixture
def suite(lfw):
    random = np.random.default_rng(1)
    (lfw / "suite").mkdir()
    (lfw / "lfw").rename(lfw / "suite" / "lfw")
    (lfw / "suite" / "lfw.txt").write_text("2\t2\n" + FOLD + FOLD.replace("1", "3"))
    images = [png(random) for _ in range(40)]
    (lfw / "suite" / "agedb_30.bin").write_bytes(pickle.dumps((images, [True, False] * 10)))
    folder = lfw / "suite" / "IJBC"
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    for number in range(6):
        (folder / "loose_crop" / f"{number}.png").write_bytes(png(random))
    (folder / "meta" / "ijbc_face_tid_mid.txt").write_text("".join(f"{k}.png {k} {k}\n" for k in range(6)))
    (folder / "meta" / "ijbc_template_pair_label.txt").write_text("0 1 1\n2 3 0\n4 5 1\n0 5 0\n")
    return lfw / "suite"


def run(suite, out, *more):
    arguments = ["verify", "--backbone", "raw-pixels", "--image-size", "16", "--suite", str(suite), "--out", str(out)]
    return cli.main([*arguments, *more])


def test_every_set_of_a_folder(suite, tmp_path, capsys):
    assert [entry.name for entry in find_suite(suite)] == ["IJBC", "agedb_30", "lfw"]
    assert run(suite, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert {name: result["num_pairs"] for name, result in results.items()} == {"IJBC": 4, "agedb_30": 20, "lfw": 8}
    assert results["IJBC"]["accuracy"] is None and 0 <= results["agedb_30"]["accuracy"] <= 1
    for name in results:
        assert name in shown and (tmp_path / "out" / f"{name}_raw-pixels.json").is_file()


def test_as_insightface_counts(suite, tmp_path, capsys):
    assert run(suite, tmp_path / "out", "--as", "insightface") == 0
    shown = capsys.readouterr().out
    assert "As InsightFace counts" in shown and "fewer pairs than its 10 folds" in shown
    counts = {
        name: json.loads((tmp_path / "out" / f"{name}_raw-pixels_as_insightface.json").read_text())
        for name in ("IJBC", "agedb_30", "lfw")
    }
    assert counts["lfw"] == {"accuracy": None, "accuracy_std": None, "tar_at_far": {}}
    assert 0 <= counts["agedb_30"]["accuracy"] <= 1 and list(counts["agedb_30"]["tar_at_far"]) == ["0.001"]
    assert counts["IJBC"]["accuracy"] is None


def test_a_set_that_fails_does_not_cost_the_others(suite, tmp_path, capsys):
    (suite / "evil.bin").write_bytes(b"cposix\nsystem\n(Vtouch x\ntR.")
    assert run(suite, tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert "agedb_30" in shown.out and "attfc: evil left out: read_bin: path must be a verification set" in shown.err
    results = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert "posix.system" in results["evil"]["error"] and results["lfw"]["num_pairs"] == 8


def test_what_is_no_suite(suite, tmp_path):
    with pytest.raises(FileNotFoundError, match="verify: suite must be a folder, got .*none"):
        find_suite(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="verify: suite must hold .bin sets, pair lists or IJB folders, got none in"):
        find_suite(tmp_path / "empty")
    (suite / "lfw.bin").touch()
    with pytest.raises(ValueError, match="verify: suite must hold sets of different names, got lfw twice; results"):
        find_suite(suite)

"""benchmarks/data.py: a small run, what it writes, and that the bytes it counts are those that are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from attfc_cuda.data import AttentionLoader, FaceDataset, build_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import compare  # noqa: E402
import data  # noqa: E402
import reports  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize("form", data.FORMATS)
def test_each_format_holds_what_it_says(form: str, made: Path) -> None:
    if form == "lmdb":
        pytest.importorskip("lmdb", reason="lmdb is not installed")
    source = data.make(made, form, 50)
    faces = build_dataset(source, 112, on_bad_image="raise")
    assert len(faces) == 50 and np.bincount(faces.labels).tolist() == [20, 20, 10] and faces[49].float().std() > 10
    written = (made / f"{form}_50" / "complete.json").stat().st_mtime_ns
    assert data.make(made, form, 50) == source
    assert (made / f"{form}_50" / "complete.json").stat().st_mtime_ns == written  # not a second time


def test_a_small_run_and_its_comparison(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "data.json"
    arguments = ["--images", "50", "--batch", "8", "--rounds", "2", "--seconds", "0.01", "--workers", "0"]
    data.main(["make", str(made), "--images", "50", "--formats", "rec", "tar"])
    data.main(["measure", str(made), *arguments, "--formats", "rec", "tar", "--output", str(output)])
    shown = capsys.readouterr().out
    report = reports.read("test", output)
    assert report["schema"] == reports.DATA and {"cpu", "torch_cpu_capability"} <= report["environment"].keys()
    whats = {
        "first open", "cached open", "memory kept", "first batch", "start of an epoch", "middle of an epoch", "read",
        "data set", "attention loader, 0 workers", "attention loader, 0 workers, probes",
    }  # fmt: skip
    for form in ("rec", "tar"):
        rows = {row["what"]: row for row in report["rows"] if row["format"] == form}
        assert whats <= rows.keys() and all(what in shown for what in whats)
        assert all(row["images"] == 50 and row.get("median_s", 1) > 0 for row in rows.values())
        faces = build_dataset(data.make(made, form, 50), 112)
        assert rows["memory kept"]["bytes_per_image"] == data.kept_bytes(faces, AttentionLoader(faces, 8)) / 50
    assert compare.main([str(output), str(output)]) == 0
    for row in report["rows"]:
        row.update({"median_s": 2 * row["median_s"], "p20_s": 0, "p80_s": 9} if row["what"] == "first open" else {})
        if row["what"] == "cached open":
            row.update(median_s=3 * row["p80_s"], p20_s=2 * row["p80_s"], p80_s=4 * row["p80_s"])
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(report))
    capsys.readouterr()
    assert compare.main([str(output), str(slower)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "REGRESSION" in line]
    assert len(lines) == 2 and all("cached open" in line for line in lines)


def test_the_bytes_are_those_of_arrays_and_names_each_once() -> None:
    faces = FaceDataset(np.repeat(np.arange(4), 3), ["a", "bb", "ccc", "dd"], 16)
    names = sum(map(sys.getsizeof, faces.identities)) + sys.getsizeof(faces.identities)
    expected = 12 * 4 + 5 * 8 + names
    assert data.kept_bytes(faces) == data.kept_bytes(faces, faces, faces.labels[2:]) == expected
    faces.more = np.zeros(1000, dtype=np.uint8)[:1]
    assert data.kept_bytes(faces) == expected + 1000


def test_sizes_that_make_no_batch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, words in (
        (["make", str(tmp_path), "--images", "10"], "--images must be at least 40, got 10"),
        (["measure", "--images", "50"], "--batch must be at most the images of a data set, got 128"),
    ):
        with pytest.raises(SystemExit):
            data.main(arguments)
        assert words in capsys.readouterr().err

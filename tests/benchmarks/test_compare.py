"""The verdicts of benchmarks/compare.py on reports made by hand."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import compare  # noqa: E402

MACHINE = {"cpu": "EPYC", "gpu": None, "threads": 2, "torch": "2.14.1", "date": "2026-01-01", "commit": "a"}


def heads_row(contender: str = "fc", median: float | None = 1.0, mib: float | None = 100.0, **changes) -> dict:
    key = {
        "case": "ms1mv3",
        "identities": 93_431,
        "batch": 384,
        "dim": 512,
        "margin": "arcface",
        "dtype": "float32",
        "backend": "cpu",
    }
    values = {"contender": contender, "status": "ok", "median_s": median, "peak_mib": mib, "x_product": median}
    marks = {} if median is None else {"p20_s": 0.99 * median, "p80_s": 1.01 * median}
    return {**key, **values, **marks, "measured_identities": 93_431, **changes}


def heads(*rows: dict, **machine) -> dict:
    return {"schema": "heads/1", "environment": {**MACHINE, **machine}, "rows": list(rows)}


def verdict(old: dict, new: dict, **machine) -> tuple[str, str]:
    (difference,) = compare.compare(heads(old), heads(new, **machine)).differences
    return difference.verdict, difference.why


def test_slower_beyond_the_tolerance_is_a_regression() -> None:
    assert verdict(heads_row(), heads_row(median=1.2)) == ("REGRESSION", "time x 1.20")
    assert verdict(heads_row(), heads_row(median=1.04))[0] == "same"
    assert verdict(heads_row(), heads_row(median=0.8)) == ("better", "time x 0.80")


def test_the_tolerance_is_the_callers() -> None:
    before, after = heads(heads_row()), heads(heads_row(median=1.2))
    assert not compare.compare(before, after, tolerance=0.25).regressions
    assert compare.compare(before, after, tolerance=0.1).regressions
    with pytest.raises(ValueError, match="compare: tolerance must be at least 0, got -1"):
        compare.compare(before, after, tolerance=-1)


def test_overlapping_marks_are_noise() -> None:
    noisy = heads_row(median=1.2, p20_s=1.0, p80_s=1.5)
    assert verdict(heads_row(), noisy) == ("noise", "time x 1.20, 20/80 % marks overlap")
    assert verdict(noisy, heads_row())[0] == "noise"
    assert verdict(heads_row(p20_s=None), noisy)[0] == "REGRESSION", "without marks nothing can be called noise"


def test_memory_counts_beyond_tolerance_and_pages() -> None:
    assert verdict(heads_row(), heads_row(mib=120.0)) == ("REGRESSION", "memory 100 MiB -> 120 MiB")
    assert verdict(heads_row(mib=2.0), heads_row(mib=9.0))[0] == "same", "a few MiB of a resident set are pages"
    assert verdict(heads_row(mib=0.0), heads_row(mib=50.0))[0] == "REGRESSION"
    assert verdict(heads_row(mib=4000.0), heads_row(mib=4100.0))[0] == "same"
    assert verdict(heads_row(), heads_row(mib=50.0)) == ("better", "memory x 0.50")
    assert verdict(heads_row(), heads_row(median=1.2, mib=50.0))[0] == "REGRESSION", "less memory excuses no time"
    both = verdict(heads_row(), heads_row(median=1.5, mib=200.0))
    assert both == ("REGRESSION", "time x 1.50, memory 100 MiB -> 200 MiB")


def test_another_machine_leaves_only_the_multiple_of_the_product() -> None:
    slower = heads_row(median=3.0, mib=400.0, x_product=1.0)
    result = compare.compare(heads(heads_row()), heads(slower, cpu="Xeon", threads=8))
    assert not result.same_machine and result.other == ["cpu EPYC and Xeon", "threads 2 and 8"]
    assert [difference.verdict for difference in result.differences] == ["same"]
    assert verdict(heads_row(), {**slower, "x_product": 1.3}, torch="2.15") == ("REGRESSION", "x product x 1.30")
    assert verdict(heads_row(x_product=None), slower, cpu="Xeon") == ("-", "no x product in both")


def test_the_multiple_of_the_faster_product_counts_where_both_files_have_it() -> None:
    old, new = heads_row(x_best=3.0), heads_row(x_best=3.9)
    assert verdict(old, new, cpu="Xeon") == ("REGRESSION", "x best x 1.30")
    assert verdict(heads_row(), new, cpu="Xeon")[0] == "same"


def test_marks_make_noise_of_the_multiple_too() -> None:
    old, new = heads_row(x_product=2.0), heads_row(median=10.0, x_product=2.4, p20_s=8.0, p80_s=12.0)
    assert verdict(old, new, cpu="Xeon")[0] == "noise"


def test_another_date_and_commit_are_the_same_machine() -> None:
    assert compare.compare(heads(), heads(date="2027-01-01", commit="b")).same_machine


def test_changes_of_status() -> None:
    lost = heads_row(median=None, mib=None, status="out of memory", reason="191 MiB of logits")
    absent = heads_row(median=None, mib=None, status="unavailable", reason="liger-kernel is not installed")
    assert verdict(heads_row(), lost) == ("REGRESSION", "ok -> out of memory: 191 MiB of logits")
    assert verdict(heads_row(), lost, cpu="smaller")[0] == "changed"
    assert verdict(lost, heads_row()) == ("changed", "out of memory -> ok")
    assert verdict(heads_row(), absent)[0] == "changed"
    assert verdict(lost, lost) == ("same", "out of memory")


def test_what_was_measured_and_now_fails_is_a_regression_on_any_machine() -> None:
    failed = heads_row(median=None, mib=None, status="failed", reason="must agree with float64")
    for machine in ({}, {"cpu": "another"}):
        assert verdict(heads_row(), failed, **machine) == ("REGRESSION", "ok -> failed: must agree with float64")
        assert verdict(failed, heads_row(), **machine)[0] == "changed"
    assert verdict(failed, failed) == ("same", "failed")


def test_measurements_multiplied_up_from_different_sizes_say_so() -> None:
    found = verdict(heads_row(), heads_row(median=9.0, measured_identities=1000))
    assert found == ("REGRESSION", "time x 9.00 (measured on 93431 and 1000 identities)")


def test_rows_of_one_side_are_listed_and_are_no_regression() -> None:
    before, after = heads(heads_row("fc"), heads_row("liger", backend=None)), heads(heads_row("quack"), heads_row("fc"))
    result = compare.compare(before, after)
    assert result.missing == ["ms1mv3, 93431, 384, 512, liger, arcface, float32"]
    assert result.new == ["ms1mv3, 93431, 384, 512, quack, arcface, float32, cpu"]
    assert len(result.differences) == 1 and not result.regressions


def test_every_part_of_the_key_tells_rows_apart() -> None:
    changes = [
        {"case": "1m"},
        {"identities": 7},
        {"batch": 128},
        {"dim": 256},
        {"margin": "adasin"},
        {"dtype": "bfloat16"},
    ]
    changes += [{"backend": "reference"}, {"contender": "x"}]
    for change in changes:
        assert not compare.compare(heads(heads_row()), heads(heads_row(**change))).differences


def sweep(median: float, **changes) -> dict:
    row = {"contender": "attfc", "dtype": "float32", "median_s": median, "x_product": 1.3, "peak_mib": 11.0}
    rows = [{**row, "p20_s": median, "p80_s": median}]
    return {"environment": MACHINE, "case": "container", "shape": {"rows": 384}, "rows": rows, **changes}


def others() -> dict[str, dict]:
    size = {"batch": 128, "dim": 512, "identities": 800, "image_size": 64, "backbone": "small"}
    scaling = {"centers": 1000, "dtype": "float32", "median_s": 1.0, "p20_s": 1.0, "p80_s": 1.0, "peak_mib": 9.0}
    training = {"head": "attfc", "median_s": 0.3, "p20_s": 0.3, "p80_s": 0.3, "peak_mib": 900.0}
    scaling, training = {**size, **scaling}, {**size, **training}
    return {
        "scaling/1": {"schema": "scaling/1", "environment": MACHINE, "rows": [scaling]},
        "training/1": {"schema": "training/1", "environment": MACHINE, "rows": [training]},
        "sweep/1": sweep(1.0),
    }


@pytest.mark.parametrize("schema", ["scaling/1", "training/1", "sweep/1"])
def test_the_other_benchmarks_files(schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = others()[schema]
    after = copy.deepcopy(before)
    for key in ("median_s", "p20_s", "p80_s"):
        after["rows"][0][key] *= 2
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, report in zip(paths, (before, after), strict=True):
        Path(path).write_text(json.dumps(report))
    assert compare.main([paths[0], paths[0]]) == 0
    assert "no regression" in capsys.readouterr().out
    assert compare.main([*paths, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == schema and found["regressions"] == 1 and found["differences"][0]["time_ratio"] == 2.0


OF_ANOTHER_SIZE = [
    ("scaling/1", {"batch": 64}),
    ("scaling/1", {"dim": 128}),
    ("training/1", {"identities": 80}),
    ("training/1", {"batch": 64}),
    ("training/1", {"image_size": 112}),
    ("training/1", {"backbone": "iresnet18"}),
]


@pytest.mark.parametrize(("schema", "change"), OF_ANOTHER_SIZE)
def test_rows_of_another_size_are_not_the_same_measurement(
    schema: str, change: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = others()[schema]
    after = {**before, "rows": [{**before["rows"][0], **change}]}
    assert run(tmp_path, json.dumps(before), json.dumps(after)) == 2
    told = "compare: the files must hold a row that measures the same, got none in common (1 and 1 rows)\n"
    assert capsys.readouterr().err == told


def run(tmp_path: Path, *texts: str, arguments: tuple[str, ...] = ()) -> int:
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(text)
    return compare.main([*map(str, paths), *arguments])


def test_the_table_shows_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = heads(heads_row("fc"), heads_row("gone"))
    after = heads(heads_row("fc", median=1.5), heads_row("fresh"), threads=4)
    after["rows"][0]["x_product"] = 1.5
    assert run(tmp_path, json.dumps(before), json.dumps(after)) == 1
    out = capsys.readouterr().out
    assert "warning: not the same machine (threads 2 and 4): only multiples of the product are compared" in out
    assert "REGRESSION: x product x 1.50" in out and "1 regression\n" in out
    assert "missing in the second: ms1mv3, 93431, 384, 512, gone" in out
    assert "new in the second: ms1mv3, 93431, 384, 512, fresh" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a readable JSON file"),
        ("[1]", "must be a benchmark's JSON with rows, got a list; give a file that"),
        ('{"a": 1}', "must be a benchmark's JSON with rows, got an object of 'a'"),
        (
            '{"rows": [], "schema": "x/1"}',
            "heads/1 or sweep/1 or scaling/1 or data/1 or training/1 or storage/1, got 'x/1'",
        ),
        ('{"rows": []}', "got None"),
        ('{"rows": [], "schema": "heads/1", "environment": 3}', "must be a JSON object, got 3"),
        ('{"rows": [{"dtype": "x"}], "schema": "scaling/1"}', "row 0 of"),
        ('{"rows": [7], "schema": "scaling/1"}', "must hold centers, batch, dim, dtype, got no centers, batch, dim"),
        (
            json.dumps({**others()["training/1"], "rows": 2 * others()["training/1"]["rows"]}),
            "attfc, 800, 128, 64, sma",
        ),
    ],
)
def test_files_that_are_no_report(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, text, json.dumps(heads())) == 2
    wrong = capsys.readouterr().err
    assert wrong.startswith("compare: ") and message in wrong and "0.json" in wrong


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json must be a readable JSON file" in capsys.readouterr().err


def test_two_different_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, json.dumps(heads()), json.dumps(others()["scaling/1"])) == 2
    assert "must be of the same schema, got heads/1 and scaling/1" in capsys.readouterr().err
    assert run(tmp_path, json.dumps(sweep(1.0)), json.dumps(sweep(1.0, case="trained-centers"))) == 2
    assert "must have the same case, got container and trained-centers" in capsys.readouterr().err


def test_the_committed_results_can_be_compared() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    assert compare.main([str(results / "cpu_epyc_2core.json")] * 2) == 0

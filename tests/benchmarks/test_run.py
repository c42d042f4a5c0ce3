"""benchmarks/run.py, sweep.py and the worker behind both: rows say what was measured and what was not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import reports  # noqa: E402
import run  # noqa: E402
import sweep  # noqa: E402
import table  # noqa: E402
import worker  # noqa: E402
from contenders import CONTENDERS  # noqa: E402
from problem import CONTAINER, TRAINED_CENTERS, Problem  # noqa: E402

from attfc_cuda.ops import backend as _backend  # noqa: E402
from attfc_cuda.plan import Head, head_needs  # noqa: E402

pytestmark = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)
needs_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs: no peak memory of a process here"
)
SMALL = Problem(identities=300, batch=24, dim=48, dtype="float32", device="cpu", margin="arcface")
# What the C library's allocator and the libraries' buffers may add, whatever the size of a head.
CONSTANT_MIB = 8


def job(name: str, problem: Problem, seconds: float, limit_mib: float = 4096, **options: object) -> worker.Job:
    return worker.Job(name, problem, seconds, 2, int(limit_mib * 2**20), threads=1, **options)


@needs_peaks
@pytest.mark.parametrize(
    ("name", "head", "scaled"),
    [("attfc 30 %", Head("", "attfc", 0.3), False), ("full fc, torch.optim", Head("", "fc", fused=False), True)],
)
def test_peak_memory_is_what_the_plan_says(name: str, head: Head, scaled: bool) -> None:
    """Measured at full size with time enough, extended from two smaller sizes without."""
    problem = Problem(600_000, 32, 128, "float32", "cpu", "arcface")
    row = worker.in_fresh_process(job(name, problem, 0.0 if scaled else 60.0))
    assert row["status"] == "ok" and row["memory_scaled"] is scaled and row["time_scaled"] is scaled
    assert (row["measured_identities"] < 600_000) is scaled
    assert row["memory_identities"] == (150_000 if scaled else 600_000)
    predicted = head_needs(head, problem.identities, problem.dim, problem.batch).total / 2**20
    assert abs(row["peak_mib"] - predicted) < 0.1 * predicted + CONSTANT_MIB, (row["peak_mib"], predicted)
    assert 0 < row["best_s"] <= row["p20_s"] <= row["median_s"] <= row["p80_s"]
    flop = (3 if scaled else 2) * 2 * 32 * 128 * row["centers"]
    assert row["tflop_per_s"] == pytest.approx(flop / row["median_s"] / 1e12)
    least = (4 * 600_000 + 2 * 32) * 128 * 4 if scaled else (180_000 + 5 * 32) * 128 * 4
    assert row["gb_per_s"] == pytest.approx(least / row["median_s"] / 1e9)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, to save the time of its imports: no limit of the memory, no peak."""
    monkeypatch.setattr(measure, "limit_memory", lambda further_bytes: None)
    monkeypatch.setattr(measure, "peak_above_start_mib", lambda work: work() or 1.0)

    def measured(asked: worker.Job) -> dict:
        row = worker.empty_row(CONTENDERS[asked.problem.task][asked.contender], asked.problem)
        return row if row["status"] == "unavailable" else worker.measured(asked)

    monkeypatch.setattr(worker, "in_fresh_process", measured)


def test_multiples_are_of_the_faster_product_first(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 product that takes three times as long as float32's, as on a CPU without 16-bit arithmetic."""
    seconds = {"step": 6.0, "bfloat16": 3.0, "float32": 1.0}

    def timed(functions: dict, rounds: int) -> dict:
        assert set(functions) == set(seconds)
        return {name: dict.fromkeys(("best_s", "median_s", "p20_s", "p80_s"), seconds[name]) for name in functions}

    monkeypatch.setattr(measure, "time_interleaved", timed)
    monkeypatch.setattr(worker, "_repeats", lambda seconds: 1)
    problem = dataclasses.replace(SMALL, dtype="bfloat16", task=CONTAINER)
    row = worker.measured(job("attfc ArcFace, cold", problem, 1.0, whole=True))
    assert (row["x_best"], row["x_product"]) == (6.0, 2.0)
    assert table.cell(row) == "6 s (6x), 1 MiB"
    seconds["bfloat16"] = 0.5
    assert worker.measured(job("attfc ArcFace, cold", problem, 1.0, whole=True))["x_best"] == 12.0


def test_the_gradient_of_given_centres_is_not_counted(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "peak_above_start_mib", lambda work: work() or 10.0)
    problem = dataclasses.replace(SMALL, task=TRAINED_CENTERS, identities=2**14, dim=64)
    assert worker.measured(job("attfc ArcFace, cold", problem, 1.0, whole=True))["peak_mib"] == 10.0 - 4


def test_a_head_over_the_memory_limit_is_a_row_that_says_what_it_asked_for() -> None:
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's RLIMIT_DATA")
    problem = Problem(100_000, 32, 64, "float32", "cpu", "arcface")
    row = worker.in_fresh_process(job("full fc, eager", problem, 60.0, limit_mib=40))
    assert row["status"] == "out of memory" and row["median_s"] is None and row["peak_mib"] is None
    assert row["reason"] == "tried to allocate 24.4 MiB more, the limit is 40 MiB"


def test_a_prediction_over_the_limit_is_out_of_memory_too(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.Run, "peak_mib", lambda self, identities: 1.0 + identities / 1000)
    problem = dataclasses.replace(SMALL, identities=10_000_000)
    row = worker.measured(job("full fc, fused", problem, 0.0, limit_mib=100))
    assert row["status"] == "out of memory" and row["peak_mib"] == pytest.approx(10_001)
    # The smallest power-of-two fraction whose centres are of 2^24 numbers.
    assert row["memory_identities"] == 625_000 and row["memory_scaled"]
    assert row["reason"] == "needs about 9.77 GiB, the limit is 100 MiB (extended from 625,000 identities)"


@pytest.mark.parametrize(
    ("returncode", "stdout", "stderr", "status", "reason"),
    [
        (-9, "", "", "out of memory", "the process was ended by SIGKILL"),
        (-11, "", "", "failed", "the process was ended by SIGSEGV"),
        (1, "", "Traceback\nRuntimeError: not on this card\n", "failed", "RuntimeError: not on this card"),
        (None, "", "", "failed", "not done after 184 s"),
        (0, "Loading.\n5\n", "RuntimeError: odd\n", "failed", "RuntimeError: odd"),
        (0, "", "", "failed", "the process ended with exit code 0 and no row"),
        (3, "", "", "failed", "the process ended with exit code 3 and no row"),
        (0, json.dumps({"status": "failed", "reason": "off by half"}), "", "failed", "off by half"),
    ],
)
def test_what_becomes_of_a_process_that_does_not_answer(
    returncode: int | None, stdout: str, stderr: str, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(command: list[str], timeout: float, **rest: object) -> subprocess.CompletedProcess[str]:
        if returncode is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    monkeypatch.setattr(worker.subprocess, "run", process)
    row = worker.in_fresh_process(job("full fc, eager", SMALL, 1.0))
    assert (row["status"], row["reason"], row["median_s"]) == (status, reason, None)


def test_a_check_that_fails_is_the_rows_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def refuse(contender: object, problem: Problem) -> dict:
        raise AssertionError("must agree with float64")

    monkeypatch.setattr(worker.oracle, "check", refuse)
    text = json.dumps(dataclasses.asdict(job("full fc, eager", SMALL, 1.0)) | {"threads": None})
    monkeypatch.setattr(sys, "argv", ["worker.py", text])
    worker.main()
    assert json.loads(capsys.readouterr().out) == {"status": "failed", "reason": "must agree with float64"}


ARGUMENTS = ["--identities", "2000", "--batches", "32", "--dim", "64", "--dtypes", "float32", "--row-seconds", "0.5"]
NAMES = ["attfc 30 %", "liger-kernel", "full fc, eager"]


def test_a_run_writes_its_rows_and_goes_on_where_it_stopped(here: None, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "new" / "heads.json"
    given = [*ARGUMENTS, "--rounds", "2", "--heads", *NAMES, "--device", "cpu", "--output", str(path)]
    run.main([*given, "--markdown"])
    report = json.loads(path.read_text())
    assert report["schema"] == "heads/1" and report["environment"]["torch"] == torch.__version__
    assert report["command"].startswith("python benchmarks/run.py")
    rows = {row["contender"]: row for row in report["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == dict(
        zip(NAMES, ("ok", "unavailable", "ok"), strict=True)
    )
    assert rows["liger-kernel"]["reason"] == "needs a CUDA device" and rows["liger-kernel"]["median_s"] is None
    own, peer = rows["attfc 30 %"], rows["full fc, eager"]
    assert (own["ours"], own["margin"], own["backend"], own["centers"]) == (True, "adasin", "cpu", 600)
    assert (peer["ours"], peer["margin"], peer["backend"], peer["centers"]) == (False, "arcface", None, 2000)
    assert set(own["errors"]) == {"loss", "embedding_grad", "centers"}
    assert own["many_classes"] == peer["many_classes"] == "right"
    assert 0 < own["x_best"] == own["x_product"], "in float32 both products are the same"
    printed = capsys.readouterr().out
    assert "| batch 32, float32 | 2k | 70k classes, float16 |" in printed and "**attfc 30 %**, adasin" in printed
    assert "liger-kernel: needs a CUDA device" in printed

    # An interruption: one row is missing, another one failed. They alone are measured.
    failed = {**report["rows"][0], "status": "failed"}
    path.write_text(json.dumps({**report, "rows": [failed, report["rows"][1]]}))
    asked = []

    def measured(asked_for: worker.Job) -> dict:
        asked.append((asked_for.contender, asked_for.many_classes))
        return {**rows[asked_for.contender], "status": status}

    monkeypatch.setattr(worker, "in_fresh_process", measured)
    status = "ok"
    run.main([*given, "--resume"])
    assert asked == [("attfc 30 %", True), ("full fc, eager", True)]
    assert {row["contender"]: row for row in json.loads(path.read_text())["rows"]} == rows

    with pytest.raises(SystemExit, match="settings of .* must be this run's, but differs: ..rounds"):
        run.main([*given, "--resume", "--rounds", "3"])
    with pytest.raises(SystemExit):
        run.main(given)
    assert "add --resume or --overwrite" in capsys.readouterr().err
    status = "failed"
    with pytest.raises(SystemExit, match="run.py: failed:\nattfc 30 %, 2000, float32: "):
        run.main([*given, "--overwrite"])
    assert len(json.loads(path.read_text())["rows"]) == 3, "one that fails takes no other's row with it"


def test_a_sweep_measures_writes_and_shows(here: None, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sweep.SHAPES, "small", (16, 300, 32))
    path, threads = tmp_path / "new" / "sweep.json", torch.get_num_threads()
    given = ["--shape", "small", "--rounds", "2", "--threads", "1", "--dtypes", "float32", "bfloat16"]
    names = ["bare product", "attfc AdaSin, cold", "attfc AdaSin, warm", "attfc AdaSin, warm, trainer's defaults"]
    given += ["--case", "trained-centers", "--output", str(path), "--contenders", *names]
    try:
        sweep.main(given)
    finally:
        torch.set_num_threads(threads)
    report = reports.read("test", path)
    assert report["schema"] == reports.SWEEP and report["shape"] == {"rows": 16, "slots": 300, "dim": 32}
    assert report["command"].endswith("'attfc AdaSin, warm' 'attfc AdaSin, warm, trainer'\"'\"'s defaults'")
    found = [(row["dtype"], row["contender"]) for row in report["rows"]]
    assert found == [(dtype, name) for dtype in ("float32", "bfloat16") for name in names]
    for row in report["rows"]:
        assert row["status"] == "ok" and 0 < row["x_product"] <= row["x_best"] and row["tflop_per_s"] > 0
    assert "scale 24, m 0.2: a flatter softmax" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(given)
    assert "add --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.parse_arguments(["--contenders", "nobody"])
    assert "got 'nobody'" in capsys.readouterr().err


def test_files_of_an_earlier_version_are_read_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    results = ROOT / "benchmarks" / "results"
    for path in sorted(results.glob("*.json")):
        report = reports.read("test", path)
        if report["schema"] in (reports.HEADS, reports.SWEEP):
            table.show(report["rows"])
            assert "eager" in capsys.readouterr().out
    rows = reports.read("test", results / "cpu_epyc_2core.json")["rows"]
    assert "| **attfc AdaSin, cold** | 375 ms (1.3x), 11.4 MiB |" in table.markdown(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: must be a whole number of at least 1, got 0"),
        (["--threads", "-1"], "--threads: must be a whole number of at least 1, got -1"),
        (["--rounds", "1"], "--rounds: must be a whole number of at least 2, got 1"),
        (["--identities", "127", "--batches", "8", "32"], "--identities must be at least four times a batch's rows"),
        (["--resume"], "--resume needs --output, and goes with no --overwrite"),
        (["--resume", "--overwrite", "--output", "x.json"], "--resume needs --output, and goes with no --overwrite"),
    ],
)
def test_arguments_that_cannot_be_run(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run.parse_arguments(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"rows": [], "schema": "training/1"}, "must be of schema heads/1, got 'training/1'"),
        ({"anything": 1}, "must be a benchmark's JSON with rows"),
        ({"rows": [], "schema": "heads/1"}, "settings of .* must be this run's, but differs"),
    ],
)
def test_a_run_goes_on_in_no_other_kind_of_file(found: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=f"run.py.*--resume: .*{message}"):
        run.main([*ARGUMENTS, "--output", str(path), "--resume"])
    assert json.loads(path.read_text()) == found


def test_plots_of_nothing_are_a_sentence_after_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = [*ARGUMENTS, "--heads", "liger-kernel", "--device", "cpu", "--output", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit, match="run.py: --plots: plots: rows must hold a measurement, got 1 rows, none"):
        run.main([*given, "--plots", str(tmp_path / "heads")])
    assert "liger-kernel" in capsys.readouterr().out and (tmp_path / "x.json").exists()


def test_the_default_run_has_every_case_and_fits_its_time() -> None:
    arguments = run.parse_arguments(["--device", "cpu"])
    tasks = run.tasks_of(arguments)
    assert {task.case for task in tasks} == set(run.CASES) and len(tasks) == 5 * 2 * len(run.HEADS)
    able = [task for task in tasks if not task.contender.unavailable(task.problem)]
    seconds = run.row_seconds_of(arguments, tasks)
    assert seconds >= 2 and len(able) * (seconds + 6) <= 25 * 60 + 1
    assert 0 < run.memory_limit_of(arguments) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    margins = {(task.contender.name, task.problem.margin) for task in tasks if task.contender.ours}
    assert ("attfc 10 %", "adasin") in margins and ("full fc, fused", "arcface") in margins
    more = run.tasks_of(run.parse_arguments(["--cases", "1m", "--margins", "cosface", "adasin", "--device", "cpu"]))
    full = [task.problem.margin for task in more if task.contender.name == "full fc, fused"]
    assert full == 2 * ["cosface", "adasin"]


def test_scaled_numbers_are_marked_in_the_table() -> None:
    row = worker.empty_row(CONTENDERS["head"]["full fc, fused"], dataclasses.replace(SMALL, identities=2_059_906))
    row.update(median_s=1.2345, x_product=3.21, peak_mib=896.4, time_scaled=True)
    assert table.cell(row) == "~1.23 s (3.2x), 896 MiB"
    assert table.cell({**row, "x_best": 4.56}) == "~1.23 s (4.6x), 896 MiB"
    assert table.cell({**row, "time_scaled": False, "memory_scaled": True, "peak_mib": 20480.0}) == (
        "1.23 s (3.2x), ~20 GiB"
    )
    lost = {**row, "status": "out of memory", "memory_scaled": True, "peak_mib": 20480.0}
    assert table.cell(lost) == "out of memory, needs ~20 GiB"
    assert table.cell({**lost, "peak_mib": None}) == "out of memory"
    lines = table.markdown([row, {**lost, "identities": 10_000_000, "many_classes": "loss inf"}]).splitlines()
    assert lines[0] == "| batch 24, float32 | 2.06M | 10M | 70k classes, float16 |"
    cells = ["**full fc, fused**, arcface", "~1.23 s (3.2x), 896 MiB", "out of memory, needs ~20 GiB", "loss inf"]
    assert lines[2] == f"| {' | '.join(cells)} |"

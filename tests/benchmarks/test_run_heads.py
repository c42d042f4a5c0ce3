"""benchmarks/run.py: contenders equal float64, rows say what was measured and what was not, a run can be resumed."""

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

import heads  # noqa: E402
import measure  # noqa: E402
import oracle  # noqa: E402
import run  # noqa: E402
import table  # noqa: E402
import worker  # noqa: E402
from contenders import CONTENDERS  # noqa: E402
from heads import Problem  # noqa: E402

from attfc_cuda import DynamicClassContainer  # noqa: E402
from attfc_cuda.ops import backend as _backend  # noqa: E402
from attfc_cuda.plan import Head, head_needs  # noqa: E402

pytestmark = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)
needs_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs: no peak memory of a process here"
)

# Few identities: some rows of a batch share a class, and a tenth of the identities is barely a batch.
SMALL = Problem(identities=300, batch=24, dim=48, dtype="float32", device="cpu", margin="arcface")
# Through torch.compile, which takes seconds for each.
COMPILED = ("full fc, torch.compile", "cut-cross-entropy")
CHECKED = [
    pytest.param(name, margin, dtype, marks=[pytest.mark.proof] if name in COMPILED else [])
    for name, contender in CONTENDERS.items()
    if contender.truth is not None and not contender.only_gpu
    for margin in (contender.margins or ("arcface", "adasin", "magface"))
    for dtype in ("float32", "bfloat16")
    if name not in COMPILED or dtype == "float32"
]
# What the C library's allocator and the libraries' buffers may add, whatever the size of a head.
CONSTANT_MIB = 8


@pytest.mark.parametrize(("name", "margin", "dtype"), CHECKED)
def test_two_steps_of_a_contender_equal_float64(name: str, margin: str, dtype: str) -> None:
    contender = CONTENDERS[name]
    problem = dataclasses.replace(SMALL, margin=margin, dtype=dtype)
    if contender.unavailable(problem):
        pytest.skip(contender.unavailable(problem))
    errors = oracle.check(contender, problem)
    assert set(errors) == {"loss", "embedding_grad", "centers"}
    # No step is that of float64 itself, and centres that had not moved would be off by 1.
    assert 0 < errors["embedding_grad"] < 0.1 and 0 < errors["centers"] < 0.1


TRAINED = ("full fc, fused", "full fc, eager", "partial fc 10 %, fused", "partial fc 10 %, eager")


@pytest.mark.parametrize("name", [*TRAINED, "attfc 30 %", "attfc 30 %, eager"])
def test_the_check_finds_a_wrong_margin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contender = CONTENDERS[name]
    if contender.ours:
        build = contender.build
        wrong = lambda problem: build(dataclasses.replace(problem, margin="cosface"))  # noqa: E731
        contender = dataclasses.replace(contender, build=wrong)
    else:
        monkeypatch.setattr("peers.M_RAD", 0.49)
    with pytest.raises(AssertionError, match=f"{name} .arcface, float32. must agree with float64"):
        oracle.check(contender, SMALL)


@pytest.mark.parametrize("name", TRAINED)
def test_the_check_finds_a_wrong_momentum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MOMENTUM", 0.89)
    monkeypatch.setattr("peers.MOMENTUM", 0.89)
    with pytest.raises(AssertionError, match="centers [0-9.e-]*"):
        oracle.check(CONTENDERS[name], SMALL)


def test_the_check_finds_a_container_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamicClassContainer, "enqueue", lambda self, centers, labels: None)
    with pytest.raises(AssertionError, match="must agree"):
        oracle.check(CONTENDERS["attfc 30 %"], SMALL)


def in_fresh_process(name: str, problem: Problem, seconds: float, limit_mib: float = 4096) -> dict:
    job = worker.Job(name, problem, seconds, 2, int(limit_mib * 2**20), threads=1)
    command = [sys.executable, "benchmarks/worker.py", json.dumps(dataclasses.asdict(job))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_peaks
@pytest.mark.parametrize(
    ("name", "head", "scaled"),
    [("attfc 30 %", Head("", "attfc", 0.3), False), ("full fc, torch.optim", Head("", "fc", fused=False), True)],
)
def test_peak_memory_is_what_the_plan_says(name: str, head: Head, scaled: bool) -> None:
    """Measured at full size with time enough, extended from two smaller sizes without."""
    problem = Problem(600_000, 32, 128, "float32", "cpu", "arcface")
    row = in_fresh_process(name, problem, 0.0 if scaled else 60.0)
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


def test_a_head_over_the_memory_limit_is_a_row_that_says_what_it_asked_for() -> None:
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's RLIMIT_DATA")
    row = in_fresh_process("full fc, eager", Problem(100_000, 32, 64, "float32", "cpu", "arcface"), 60.0, limit_mib=40)
    assert row["status"] == "out of memory" and row["median_s"] is None and row["peak_mib"] is None
    assert row["reason"] == "tried to allocate 24.4 MiB more, the limit is 40 MiB"


def test_a_prediction_over_the_limit_is_out_of_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "limit_memory", lambda further_bytes: None)
    monkeypatch.setattr(worker.Run, "peak_mib", lambda self, identities: 1.0 + identities / 1000)
    problem = dataclasses.replace(SMALL, identities=10_000_000)
    row = worker.measured(worker.Job("full fc, fused", problem, 0.0, 2, 100 * 2**20))
    assert row["status"] == "out of memory" and row["peak_mib"] == pytest.approx(10_001)
    # The smallest power-of-two fraction whose centres are of 2^24 numbers.
    assert row["memory_identities"] == 625_000 and row["memory_scaled"]
    assert row["reason"] == "needs about 9.77 GiB, the limit is 100 MiB (extended from 625,000 identities)"


ARGUMENTS = ["--identities", "2000", "--batches", "32", "--dim", "64", "--dtypes", "float32", "--row-seconds", "0.5"]
NAMES = ["attfc 30 %", "liger-kernel", "full fc, eager"]


def test_a_run_writes_its_rows_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "new" / "heads.json"
    given = [*ARGUMENTS, "--threads", "1", "--rounds", "2", "--heads", *NAMES, "--device", "cpu", "--output", str(path)]
    run.main([*given, "--markdown"])
    report = json.loads(path.read_text())
    assert report["schema"] == "heads/1" and report["environment"]["torch"] == torch.__version__
    assert report["command"].startswith("python benchmarks/run.py")
    rows = {row["contender"]: row for row in report["rows"]}
    assert list(rows) == NAMES
    assert {name: row["status"] for name, row in rows.items()} == dict(
        zip(NAMES, ("ok", "unavailable", "ok"), strict=True)
    )
    assert rows["liger-kernel"]["reason"] == "needs a CUDA device" and rows["liger-kernel"]["median_s"] is None
    ours, peer = rows["attfc 30 %"], rows["full fc, eager"]
    assert (ours["ours"], ours["margin"], ours["backend"], ours["centers"]) == (True, "adasin", "cpu", 600)
    assert (peer["ours"], peer["margin"], peer["backend"], peer["centers"]) == (False, "arcface", None, 2000)
    assert set(ours["errors"]) == {"loss", "embedding_grad", "centers"}
    printed = capsys.readouterr().out
    assert "| batch 32, float32 | 2 k |" in printed and "**attfc 30 %**, adasin" in printed
    assert "liger-kernel: needs a CUDA device" in printed

    # An interruption: one row is missing. It alone is measured.
    path.write_text(json.dumps({**report, "rows": report["rows"][:2]}))
    asked = []
    monkeypatch.setattr(run, "measured", lambda task, *rest: asked.append(task.contender.name) or peer)
    run.main([*given, "--resume"])
    assert asked == ["full fc, eager"]
    assert json.loads(path.read_text())["rows"] == report["rows"]

    with pytest.raises(SystemExit, match="settings of .* must be this run's, but differs: ..rounds"):
        run.main([*given, "--resume", "--rounds", "3"])
    with pytest.raises(SystemExit):
        run.main(given)
    assert "add --resume or --overwrite" in capsys.readouterr().err
    run.main([*given, "--overwrite"])
    assert asked == ["full fc, eager", *NAMES]


@pytest.mark.parametrize(
    ("returncode", "stdout", "status", "reason"),
    [
        (-9, "", "out of memory", "the process was ended by SIGKILL"),
        (-11, "", "unavailable", "the process was ended by SIGSEGV"),
        (1, "", "unavailable", "RuntimeError: not on this card"),
        (None, "", "unavailable", "not done after 184 s"),
        (0, "", "unavailable", "RuntimeError: not on this card"),
        (0, "Loading.\n5\n", "unavailable", "RuntimeError: not on this card"),
        (0, json.dumps({"failed": "a loss off by half"}), None, "full fc, eager, x, float32: a loss off by half"),
    ],
)
def test_what_becomes_of_a_process_that_does_not_answer(returncode, stdout, status, reason, monkeypatch) -> None:
    def worker_process(command, timeout, **rest):
        if returncode is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, returncode, stdout, "Traceback\nRuntimeError: not on this card\n")

    monkeypatch.setattr(run.subprocess, "run", worker_process)
    task = run.Task("x", CONTENDERS["full fc, eager"], SMALL)
    arguments = run.parse_arguments(ARGUMENTS)
    if status is None:
        with pytest.raises(SystemExit, match=reason):
            run.measured(task, arguments, 1.0, 2**30)
        return
    row = run.measured(task, arguments, 1.0, 2**30)
    assert (row["status"], row["reason"], row["median_s"]) == (status, reason, None)


@pytest.mark.parametrize("returncode", [0, 3])
def test_a_process_without_a_word_is_told_by_its_exit_code(returncode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = subprocess.CompletedProcess([], returncode, "", "")
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **options: silent)
    arguments, told = run.parse_arguments(ARGUMENTS), f"the process ended with exit code {returncode} and no row"
    row = run.measured(run.Task("x", CONTENDERS["full fc, eager"], SMALL), arguments, 1.0, 2**30)
    assert (row["status"], row["reason"]) == ("unavailable", told)
    with pytest.raises(SystemExit, match=f"run.py: attfc 30 %, x, float32: {told}"):
        run.measured(run.Task("x", CONTENDERS["attfc 30 %"], SMALL), arguments, 1.0, 2**30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: must be a whole number of at least 1, got 0"),
        (["--threads", "-1"], "--threads: must be a whole number of at least 1, got -1"),
        (["--identities", "16", "--batches", "8", "32"], "--identities must be at least as many as a batch has rows"),
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
    assert {task.case for task in tasks} == set(heads.CASES) and len(tasks) == 5 * 2 * len(CONTENDERS)
    able = [task for task in tasks if not task.contender.unavailable(task.problem)]
    seconds = run.row_seconds_of(arguments, tasks)
    assert seconds >= 2 and len(able) * (seconds + 6) <= 25 * 60 + 1
    assert 0 < run.memory_limit_of(arguments) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    margins = {(task.contender.name, task.problem.margin) for task in tasks if task.contender.ours}
    assert ("attfc 10 %", "adasin") in margins and ("full fc, fused", "arcface") in margins
    more = run.tasks_of(run.parse_arguments(["--cases", "1m", "--margins", "cosface", "adasin", "--device", "cpu"]))
    assert [task.problem.margin for task in more if task.contender.name == "full fc, fused"] == 2 * [
        "cosface",
        "adasin",
    ]


def test_scaled_numbers_are_marked_in_the_table() -> None:
    row = worker.empty_row(CONTENDERS["full fc, fused"], dataclasses.replace(SMALL, identities=2_059_906))
    row.update(median_s=1.2345, x_product=3.21, peak_mib=896.4, time_scaled=True)
    assert table.cell(row) == "~1234 ms (3.2x), 896 MiB"
    assert table.cell({**row, "time_scaled": False, "memory_scaled": True, "peak_mib": 20480.0}) == (
        "1234 ms (3.2x), ~20 GiB"
    )
    lost = {**row, "status": "out of memory", "memory_scaled": True, "peak_mib": 20480.0}
    assert table.cell(lost) == "out of memory, needs ~20 GiB"
    assert table.cell({**lost, "peak_mib": None}) == "out of memory"
    lines = table.markdown([row, {**lost, "identities": 10_000_000}]).splitlines()
    assert lines[0] == "| batch 24, float32 | 2.06 M | 10 M |"
    assert lines[2] == "| **full fc, fused**, arcface | ~1234 ms (3.2x), 896 MiB | out of memory, needs ~20 GiB |"

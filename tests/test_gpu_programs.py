"""What only a GPU can run in earnest is run here on the CPU, as far as it goes: benchmarks/gpu.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attfc_cuda.ops import backend as _backend

ROOT = Path(__file__).resolve().parents[1]

needs_extension = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.proof
@needs_extension
def test_the_gpu_benchmark_runs_in_small(tmp_path):
    output = tmp_path / "results" / "gpu.json"
    stages = ("build", "correctness", "time", "trained", "head", "tests")
    arguments = ["--device", "cpu", "--tiny", "--output", str(output), "--stages", *stages]
    done = run(["benchmarks/gpu.py", *arguments])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(output.read_text())
    assert {name: stage["error"] for name, stage in report["stages"].items()} == dict.fromkeys(stages)
    assert report["environment"]["torch"] and any("cuda extension" in line for line in report["info"])
    assert report["tests"]["gpu"]["counts"]["passed"] > 0 and report["tests"]["correctness"]["counts"]["skipped"] > 0
    timed = {(row["rows"], row["contender"]) for row in report["rows"] if row["case"] == "container"}
    names = ("bare product", "attfc AdaSin, cold [cpu]", "attfc AdaSin, warm [cpu]", "eager ArcFace, as InsightFace")
    assert {(rows, name) for rows in (4, 8) for name in (*names, "torch.compile AdaSin")} <= timed
    trained = {row["contender"] for row in report["rows"] if row["case"] == "trained-centers"}
    assert {*names, "torch.compile AdaSin"} <= trained
    assert not report.get("left_out")
    for row in report["rows"]:
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"] and row["tflop_per_s"] > 0
        assert row["x_product"] == pytest.approx(1) if row["contender"] == "bare product" else row["x_product"] > 0
    assert {row["way"] for row in report["head"]} == {"eager", "compiled", "unfused"}


def test_failed_stages_lose_nothing_an_empty_budget_starts_nothing_and_a_missing_gpu_is_said(tmp_path):
    program = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import gpu

path = Path({str(tmp_path / "report.json")!r})
report = gpu.Report(path, {{}}, 100.0)
def fails(report, deadline):
    report.content["rows"].append("kept")
    raise RuntimeError("no luck")
report.run("build", fails)
report.run("time", lambda report, deadline: report.content["rows"].append("after"))
report.budget_s = 0.0
report.run("head", lambda report, deadline: report.content["rows"].append("never"))
content = json.loads(path.read_text())
assert content["rows"] == ["kept", "after"], content
errors = [stage["error"] for stage in content["stages"].values()]
assert errors == ["RuntimeError: no luck", None, "not started: the budget is used up"], errors
assert gpu.main([]) == 2
"""
    done = run(["-c", program], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "torch sees no CUDA device; nothing is built, tested or timed" in done.stderr

"""The suites of benchmarks/pieces run once each, untimed, so that they cannot rot; and plain pytest leaves them alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_piece_runs_and_is_right() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the extra [bench])")
    done = run("benchmarks/pieces", "--benchmark-disable")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 60 and "skipped" not in done.stdout


def test_each_suite_has_its_group() -> None:
    suites = sorted((ROOT / "benchmarks" / "pieces").glob("bench_*.py"))
    assert [suite.stem for suite in suites] == ["bench_class_centers", "bench_enqueue", "bench_margins", "bench_sweep"]
    for suite in suites:
        functions = re.findall(r"^def bench_\w+", suite.read_text(), flags=re.MULTILINE)
        assert len(functions) == suite.read_text().count("@pytest.mark.benchmark(group=") > 0


def test_the_projects_tests_do_not_collect_them() -> None:
    done = run("--collect-only", "tests/benchmarks")
    assert done.returncode == 0 and "bench_" not in done.stdout

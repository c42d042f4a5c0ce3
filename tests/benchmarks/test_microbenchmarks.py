"""The suites of benchmarks/microbenchmarks run once each at small sizes, untimed, so that they cannot rot."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
def test_every_microbenchmark_runs_and_is_right() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the extra [bench])")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/microbenchmarks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--benchmark-disable", "-k", "small"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 22 and "skipped" not in done.stdout


SUITES = sorted((ROOT / "benchmarks" / "microbenchmarks").glob("bench_*.py"))


def test_each_suite_has_its_group() -> None:
    assert [suite.stem for suite in SUITES] == [
        "bench_class_centers",
        "bench_enqueue",
        "bench_head_step",
        "bench_loss",
        "bench_margins",
    ]
    for suite in SUITES:
        functions = re.findall(r"^def bench_\w+", suite.read_text(), flags=re.MULTILINE)
        assert len(functions) == suite.read_text().count("@pytest.mark.benchmark(group=") > 0


def test_the_projects_tests_do_not_collect_them(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    patterns = pytestconfig.getini("python_files")
    files = (ROOT / "benchmarks").rglob("*.py")
    assert not [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]

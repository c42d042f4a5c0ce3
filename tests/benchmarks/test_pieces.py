"""The suites of benchmarks/pieces run once each, untimed, so that they cannot rot; plain pytest leaves them alone."""

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
def test_every_piece_runs_and_is_right() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the extra [bench])")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "benchmarks/pieces",
        "--benchmark-disable",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 60 and "skipped" not in done.stdout


def test_each_suite_has_its_group() -> None:
    suites = sorted((ROOT / "benchmarks" / "pieces").glob("bench_*.py"))
    assert [suite.stem for suite in suites] == ["bench_class_centers", "bench_enqueue", "bench_margins", "bench_sweep"]
    for suite in suites:
        functions = re.findall(r"^def bench_\w+", suite.read_text(), flags=re.MULTILINE)
        assert len(functions) == suite.read_text().count("@pytest.mark.benchmark(group=") > 0


def test_the_projects_tests_do_not_collect_them(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    patterns = pytestconfig.getini("python_files")
    files = (ROOT / "benchmarks").rglob("*.py")
    assert not [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]

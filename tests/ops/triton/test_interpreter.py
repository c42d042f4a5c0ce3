"""Runs the *_cases.py files of this folder in a process with TRITON_INTERPRET=1, and reports each test of theirs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*_cases.py"))
NAMES = [
    f"{file.stem}::{node.name}"
    for file in FILES
    for node in ast.parse(file.read_text()).body
    if getattr(node, "name", "").startswith("test_")
]

# Loop bounds are arrays of one element to the interpreter, which Triton 3.6 converts as numpy 2.4 forbids.
SOURCE = (Path(triton.__file__).parent / "runtime" / "interpreter.py").read_text()
pytestmark = pytest.mark.skipif(
    "int(self.handle.data)" in SOURCE and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
    reason=f"the interpreter of Triton {triton.__version__} does not work with numpy {np.__version__}",
)


def run(selection: str, folder: Path) -> dict[str, list[str | None]]:
    """For each test of the files, one entry a case that the marks select: None where it passed, else what it said."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection, f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *map(str, FILES)],
        cwd=FOLDER.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str | None]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next(
            (case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None
        )
        said = None if problem is None else f"{case.get('name')}: {problem.get('message')}\n{problem.text}"
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name', '').split('[')[0]}"
        found.setdefault(name, []).append(said)
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[str | None]]:
    return run("not proof", tmp_path_factory.mktemp("interpreter"))


@pytest.mark.parametrize("name", NAMES)
def test_in_the_interpreter(name, outcomes):
    cases = outcomes.get(name, [])
    problems = [said for said in cases if said is not None]
    assert cases, f"{name} did not run"
    assert not problems, f"{len(problems)} of {len(cases)} cases:\n" + "\n".join(problems)


def test_all_files_ran(outcomes):
    assert len(FILES) == 4
    assert set(outcomes) == set(NAMES)
    print(f"\nTriton interpreter: {sum(map(len, outcomes.values()))} cases passed or reported above")


@pytest.mark.proof
def test_the_cases_that_are_left_to_proof(tmp_path):
    found = run("proof", tmp_path)
    problems = [said for cases in found.values() for said in cases if said is not None]
    assert found and not problems, f"{len(problems)} of {sum(map(len, found.values()))} cases:\n" + "\n".join(problems)

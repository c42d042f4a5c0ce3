"""Fixtures that all tests share, and the count of the tests that stand in for a GPU or need one."""

import json
import os
from pathlib import Path

import counting
import pytest


def pytest_terminal_summary(terminalreporter):
    counts = counting.count(terminalreporter.stats)
    path = os.environ.get("ATTFC_TEST_COUNTS")  # tests/counting.py reads it after ctest has run
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({counting.KINDS[kind]: value for kind, value in counts.items()}))
    for kind, value in counts.items():
        if value["passed"] + value["failed"] + value["skipped"]:
            numbers = ", ".join(f"{value[name]} {name}" for name in ("passed", "failed", "skipped") if value[name])
            reasons = "; ".join(value["reasons"])
            terminalreporter.write_line(
                f"tests {counting.KINDS[kind]}: {numbers}" + (f" ({reasons})" if reasons else "")
            )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real face archives, not part of the project: tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real faces are not on this machine: no folder {folder.name} beside the clone, at ../shared/data")
    return folder

"""Fixtures that all tests share; the counts and the times that `make test` and `make proof` report."""

import json
import os
from pathlib import Path

import counting
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: the workers share the processor
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LEFT_TO_PROOF = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--reports", type=Path, help="folder for counts.json and durations.json (tests/counting.py)")


def pytest_configure(config):
    config.stash[LEFT_TO_PROOF] = 0


def pytest_deselected(items):
    for item in items:
        item.config.stash[LEFT_TO_PROOF] += item.get_closest_marker("proof") is not None


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist: it selects, its parent reports
        session.config.workeroutput["left_to_proof"] = session.config.stash[LEFT_TO_PROOF]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    left = getattr(node, "workeroutput", {}).get("left_to_proof", 0)
    node.config.stash[LEFT_TO_PROOF] = max(left, node.config.stash[LEFT_TO_PROOF])


def pytest_terminal_summary(terminalreporter, config):
    counts = counting.count(terminalreporter.stats)
    folder = config.getoption("--reports")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        named = {counting.KINDS[kind]: value for kind, value in counts.items()}
        (folder / "counts.json").write_text(json.dumps(named))
        (folder / "durations.json").write_text(json.dumps(counting.seconds_of(terminalreporter.stats)))
    for kind, value in counts.items():
        if value["passed"] + value["failed"] + value["skipped"]:
            numbers = ", ".join(f"{value[name]} {name}" for name in ("passed", "failed", "skipped") if value[name])
            reasons = "; ".join(value["reasons"])
            terminalreporter.write_line(
                f"tests {counting.KINDS[kind]}: {numbers}" + (f" ({reasons})" if reasons else "")
            )
    if config.stash[LEFT_TO_PROOF]:
        terminalreporter.write_line(f"{config.stash[LEFT_TO_PROOF]} tests are left to `make proof`")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real face archives, not part of the project: tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real faces are not on this machine: no folder {folder.name} beside the clone, at ../shared/data")
    return folder

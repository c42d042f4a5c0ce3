"""The counts and the times at the end of `make test`."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import counting
import pytest

CTEST = """<testsuite tests="4">
<testcase name="cuda_host.plain.sweep" time="7.5" status="run"><system-out>FAILED x
12 passed, 1 failed
</system-out></testcase>
<testcase name="cuda_host.asan.sweep" status="run"><system-out>3 passed, 0 failed</system-out></testcase>
<testcase name="cuda_host.tsan.sweep" status="fail"><system-out>crashed</system-out></testcase>
<testcase name="cuda_compile.resources" status="run"><system-out>70 passed, 0 failed</system-out></testcase>
</testsuite>"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("tests/gpu/test_sweep.py", "gpu"),
        ("tests/ops/triton/test_interpreter.py", "interpreter"),
        ("tests/ops/triton/test_center_gradient_interpreter.py", "interpreter"),
        ("tests/ops/triton/test_compile.py", "compile"),
        ("tests/ops/test_cuda_extension_compile.py", "compile"),
        ("tests/ops/test_backend.py", None),
    ],
)
def test_kind_by_place(path, kind):
    assert counting.kind_of(Path(path)) == kind


def test_reports_are_counted_with_the_reasons_of_skips():
    def report(path, reason=""):
        return SimpleNamespace(nodeid=f"{path}::test", longrepr=(path, 1, f"Skipped: {reason}"))

    counted = counting.count(
        {
            "passed": [report("tests/ops/triton/test_interpreter.py")] * 3 + [report("tests/ops/test_backend.py")],
            "failed": [report("tests/gpu/test_a.py")],
            "error": [report("tests/gpu/test_a.py")],
            "skipped": [report("tests/gpu/test_a.py", "no card")] * 2,
            "deselected": [object()],
        }
    )
    assert counted["interpreter"]["passed"] == 3
    assert (counted["gpu"]["failed"], counted["gpu"]["skipped"]) == (2, 2)
    assert counted["gpu"]["reasons"] == {"no card": 2}


def test_ctest_programs_count_their_cases():
    counted = counting.count_ctest(CTEST)
    assert (counted[counting.HOST_RUN]["passed"], counted[counting.HOST_RUN]["failed"]) == (15, 2)
    assert counted[counting.COMPILED]["passed"] == 70
    gpu = {"for a GPU": {"passed": 0, "failed": 0, "skipped": 2, "reasons": {"no card": 2}}}
    compiled = {counting.COMPILED: {"passed": 5, "failed": 0, "skipped": 0, "reasons": {}}}
    printed = counting.lines(gpu, compiled, counted)
    assert len(printed) == 3
    assert "0 passed   0 failed    2 skipped  (no card)" in printed[0]
    assert " 75 passed" in printed[1]


def test_times_of_files_and_tests_slowest_first():
    def report(name, when, seconds):
        return SimpleNamespace(nodeid=name, when=when, duration=seconds)

    seconds = counting.seconds_of(
        {
            "": [report("a.py::slow", "setup", 2.0), report("b.py::x", "teardown", 0.5)],
            "passed": [report("a.py::slow", "call", 3.0), report("a.py::fast", "call", 1.0)],
            "deselected": [object()],
        }
    )
    assert seconds == {"a.py::slow": 5.0, "b.py::x": 0.5, "a.py::fast": 1.0}
    table = counting.durations(seconds | counting.seconds_of_ctest(CTEST)).splitlines()
    assert [line.split() for line in table[:3]] == [
        ["7.50", "s", "ctest"],
        ["6.00", "s", "a.py"],
        ["0.50", "s", "b.py"],
    ]
    assert table[3].split() == ["7.50", "s", "ctest::cuda_host.plain.sweep"]
    assert [line.split()[-1] for line in table[4:7]] == ["a.py::slow", "a.py::fast", "b.py::x"]


def as_make_does(folder: str) -> list[str]:
    """`--reports` and its value in the Makefile's words: pytest takes a folder behind a space for one of tests, if it
    is there, and does not find the option then."""
    recipe = (Path(__file__).parents[1] / "Makefile").read_text()
    (words,) = set(re.findall(r"--reports[= ]", recipe))
    return f"{words}{folder}".split()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_to_proof_is_said_and_reports_are_written(tmp_path, workers):
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    here, tests = Path(__file__).parent, tmp_path / "tests"
    tests.mkdir()
    for file in (here / "conftest.py", here / "counting.py", here.parent / "pyproject.toml"):
        shutil.copy(file, tmp_path if file.suffix == ".toml" else tests)
    (tests / "test_two.py").write_text(
        "import pytest\n\ndef test_now(): pass\n\n@pytest.mark.proof\ndef test_later(): pass\n"
    )
    reports = as_make_does("reports")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not proof", *reports]
    command += ["-n", str(workers)] if workers else []
    for _ in ("the first time", "again, where the folder is there"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 tests are left to `make proof`" in done.stdout and "1 passed" in done.stdout
    assert list(json.loads((tmp_path / "reports" / "durations.json").read_text())) == ["tests/test_two.py::test_now"]
    assert set(json.loads((tmp_path / "reports" / "counts.json").read_text())) == set(counting.KINDS.values())

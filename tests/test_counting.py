"""The counts at the end of `make test`."""

from pathlib import Path
from types import SimpleNamespace

import counting
import pytest

CTEST = """<testsuite tests="4">
<testcase name="cuda_host.plain.sweep" status="run"><system-out>FAILED x
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
    gpu = {"on a GPU": {"passed": 0, "failed": 0, "skipped": 2, "reasons": {"no card": 2}}}
    compiled = {counting.COMPILED: {"passed": 5, "failed": 0, "skipped": 0, "reasons": {}}}
    printed = counting.lines(gpu, compiled, counted)
    assert len(printed) == 3
    assert "0 passed   0 failed    2 skipped  (no card)" in printed[0]
    assert " 75 passed" in printed[1]

"""The last lines of `make test`: how many tests ran in place of a GPU, and how many on one.

python tests/counting.py PYTEST.json CTEST.xml, as tests/conftest.py and `ctest --output-junit` write them.
"""

import collections
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# What a test of the GPU kernels does, by its place: the folder tests/gpu, or a word in its file's name.
KINDS = {
    "gpu": "on a GPU",
    "interpreter": "Triton kernels in the interpreter",
    "compile": "GPU kernels compiled only",
}


def kind_of(path: Path) -> str | None:
    """The kind of the tests in a file; None for tests that have nothing to do with a GPU."""
    if path.parent.name == "gpu":
        return "gpu"
    return next((kind for kind in ("interpreter", "compile") if kind in path.stem.split("_")), None)


def count(reports: dict[str, list]) -> dict[str, dict]:
    """Of each kind, how many tests passed, failed and were skipped, and the reasons of the skips with their numbers."""
    counts = {kind: {"passed": 0, "failed": 0, "skipped": 0, "reasons": collections.Counter()} for kind in KINDS}
    for outcome, group in reports.items():
        outcome = "failed" if outcome == "error" else outcome
        for report in group:
            kind = kind_of(Path(report.nodeid.split("::")[0])) if hasattr(report, "nodeid") else None
            if kind is None or outcome not in counts[kind]:
                continue
            counts[kind][outcome] += 1
            if outcome == "skipped":
                counts[kind]["reasons"][report.longrepr[2].removeprefix("Skipped: ")] += 1
    return counts


HOST_RUN = "CUDA kernels run on the CPU"
COMPILED = KINDS["compile"]


def count_ctest(xml: str) -> dict[str, dict]:
    """Cases of each kind from the programs' own words, "N passed, M failed"; a program without them is one case."""
    counts = {kind: {"passed": 0, "failed": 0, "skipped": 0, "reasons": {}} for kind in (HOST_RUN, COMPILED)}
    for test in ElementTree.fromstring(xml).iter("testcase"):
        of = counts[COMPILED if test.get("name", "").startswith("cuda_compile") else HOST_RUN]
        said = re.findall(r"(\d+) passed, (\d+) failed", test.findtext("system-out") or "")
        if test.get("status") == "run" and said:
            of["passed"] += int(said[-1][0])
            of["failed"] += int(said[-1][1])
        else:
            of["passed" if test.get("status") == "run" else "failed"] += 1
    return counts


def lines(*groups: dict[str, dict]) -> list[str]:
    total: dict[str, dict] = {}
    for group in groups:
        for kind, value in group.items():
            into = total.setdefault(kind, {"passed": 0, "failed": 0, "skipped": 0, "reasons": []})
            for name in ("passed", "failed", "skipped"):
                into[name] += value[name]
            into["reasons"] += list(value["reasons"])
    return [
        f"{kind:<34} {value['passed']:>5} passed {value['failed']:>3} failed {value['skipped']:>4} skipped"
        + (f"  ({'; '.join(value['reasons'])})" if value["reasons"] else "")
        for kind, value in total.items()
    ]


if __name__ == "__main__":
    pytest_counts, ctest_counts = (Path(path) for path in sys.argv[1:3])
    print("\n".join(lines(json.loads(pytest_counts.read_text()), count_ctest(ctest_counts.read_text()))))

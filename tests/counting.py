"""The last lines of `make test` and `make proof`: how many tests ran in place of a GPU, how many on one, and the
slowest of all.

python tests/counting.py REPORTS CTEST.xml, as `pytest --reports` (tests/conftest.py) and `ctest --output-junit` write
them; REPORTS/durations.txt gets the seconds of every file and every test, slowest first.
"""

import collections
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# What a test of the GPU kernels does, by its place: the folder tests/gpu, or a word in its file's name.
KINDS = {
    "gpu": "for a GPU",
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


def seconds_of(reports: dict[str, list]) -> dict[str, float]:
    """Of each test, the seconds of its set-up, its call and its tear-down together."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for group in reports.values():
        for report in group:
            if hasattr(report, "when"):
                seconds[report.nodeid] += report.duration
    return dict(seconds)


def seconds_of_ctest(xml: str) -> dict[str, float]:
    return {
        f"ctest::{test.get('name')}": float(test.get("time", 0))
        for test in ElementTree.fromstring(xml).iter("testcase")
    }


def durations(seconds: dict[str, float]) -> str:
    """A line for each file and then for each test, slowest first."""
    files: dict[str, float] = collections.defaultdict(float)
    for name, value in seconds.items():
        files[name.split("::")[0]] += value
    return "".join(
        f"{value:9.2f} s  {name}\n"
        for each in (files, seconds)
        for name, value in sorted(each.items(), key=lambda item: -item[1])
    )


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
    reports, ctest_xml = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
    seconds = json.loads((reports / "durations.json").read_text()) | seconds_of_ctest(ctest_xml)
    (reports / "durations.txt").write_text(durations(seconds))
    print("\n".join(lines(json.loads((reports / "counts.json").read_text()), count_ctest(ctest_xml))))

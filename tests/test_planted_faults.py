"""The faults that tests/csrc/faults.py compiles and runs still fit the sources: each is planted here, as text only."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "csrc"))
import fault  # noqa: E402
import faults  # noqa: E402

CSRC = ROOT / "csrc"


def test_each_fault_changes_its_marked_lines_and_no_other():
    places = fault.marked_lines(CSRC)
    for planted in faults.FAULTS:
        differing = set()
        for path, lines in fault.changed_files(planted, CSRC).items():
            pairs = enumerate(zip(path.read_text().split("\n"), lines, strict=True))
            differing |= {(path, index) for index, (before, after) in pairs if before != after}
        assert differing == {places[at] for at, *_ in planted.changes}, planted.label


def test_each_marker_has_a_fault_and_each_fault_a_name_of_its_own():
    labels = [each.label for each in faults.FAULTS]
    assert len(set(labels)) == len(labels)
    used = {at for each in faults.FAULTS for at, *_ in each.changes}
    assert set(fault.marked_lines(CSRC)) == used


@pytest.mark.parametrize(
    "source, message",
    [
        ("sync();\n", "no line is marked `// fault: barrier`"),
        ("wait();  // fault: barrier\n", "the line marked barrier holds `sync` 0 times, not once: `wait\\(\\);`"),
        ("sync(sync);  // fault: barrier\n", "holds `sync` 2 times"),
        ("sync();  // fault: barrier\nsync();  // fault: barrier\n", "the marker barrier stands in a.h and in a.h"),
    ],
)
def test_a_fault_that_no_longer_fits_says_so(tmp_path, source, message):
    (tmp_path / "a.h").write_text(source)
    with pytest.raises(ValueError, match=message):
        fault.plant(fault.Fault("gone", "plain", "barrier", "sync", "wait"), tmp_path)


def test_a_marker_of_its_own_line_names_the_next_and_the_whole_line_may_go(tmp_path):
    (tmp_path / "a.h").write_text("  // fault: barrier\n  if (long) sync();\n  sync();\n")
    fault.plant(fault.Fault("gone", "plain", "barrier", fault.LINE, ""), tmp_path)
    assert (tmp_path / "a.h").read_text() == "  // fault: barrier\n  \n  sync();\n"

"""A short run of the fuzzer, in a process of its own so that a crash is a failure and not the end of the tests; and
hypothesis on the two readers of our own, with inputs that are whole but for what it chooses."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import STRUCTURED, TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_fuzz import mutated

from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.data.sources.recordio import RecordFile
from attfc_cuda.evaluation.restricted_pickle import Array, read_pickle

SCRIPT = Path(__file__).with_name("run_fuzz.py")


@pytest.mark.parametrize("inputs", [1000, pytest.param(20_000, marks=pytest.mark.proof)])
def test_damaged_files_are_errors_and_nothing_worse(tmp_path, inputs):
    arguments = ["--inputs", str(inputs), "--seed", "20", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["targets"]) == set(TARGETS) and report["inputs"] >= 0.99 * inputs
    # Some inputs must get past the first check, or nothing behind it was fuzzed.
    assert all(counts["read"] > 0 for name, counts in report["targets"].items() if name != "lmdb"), report
    assert report["more_memory_mib"] < 300


def test_the_fuzzer_finds_a_planted_fault(tmp_path):
    """A reader that indexes past what it got: the fuzzer must notice the untyped error within the short run."""
    plant = """
import os, sys
sys.argv[0] = sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1))
import attfc_cuda.data.sources.checked_file as m

def read(self, start, length):
    content = os.pread(self.descriptor, min(length, 2**20), start)
    return content if len(content) == length else content[length]

m.CheckedFile.read = read
import run_fuzz
sys.exit(run_fuzz.main())
"""
    arguments = [str(SCRIPT), str(SCRIPT.parent), "--inputs", "600", "--targets", "rec", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", plant, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "broke a rule, kept as" in done.stderr, done.stderr[-2000:]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", list(TARGETS))
def test_whole_files_are_read(tmp_path, name):
    seeds, run = TARGETS[name]
    whole = seeds(tmp_path)[:1] if name == "lists" else seeds(tmp_path)
    read = [run(data, tmp_path) for data in whole]
    assert sum(read) >= len(whole) - 2 * (name == "bin")  # two of the .bin are hostile from the start


def test_inputs_are_the_same_for_the_same_seed():
    import random

    seeds = [b"abcdefgh" * 20, b"xyz"]
    first, again, other = ([mutated(seeds, rng) for _ in range(50)] for rng in map(random.Random, (1, 1, 2)))
    assert first == again != other


@pytest.mark.parametrize("name", list(STRUCTURED))
def test_structured_changes_are_often_read(tmp_path, name):
    import random

    seeds, run = TARGETS[name]
    rng, whole = random.Random(0), seeds(tmp_path)
    changed = [STRUCTURED[name](rng.choice(whole), rng) for _ in range(60)]
    assert len(set(changed)) > 50 and sum(run(data, tmp_path) for data in changed) > 20


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0xCED7230A, 0xCED7230A, 0xCED7230A, 0, 0x0A23D7CE]),
            st.integers(0, 7),
            st.one_of(st.integers(0, 40), st.sampled_from([2**29 - 1, 2**28])),
            st.binary(max_size=40),
        ),
        max_size=6,
    )
)
def test_a_scan_of_any_parts_ends_and_yields_records_only(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("scan") / "a.rec"
    path.write_bytes(
        b"".join(struct.pack("<II", m, k << 29 | n) + d + bytes(-len(d) % 4) for m, k, n, d in parts) or b"x"
    )
    damage, records = [], RecordFile(path)
    offsets = list(records.scan(damage.append))
    assert offsets == sorted(set(offsets)) and len(offsets) + len(damage) <= path.stat().st_size
    for offset in offsets:
        data, behind = records.read(offset)
        assert offset + 8 <= behind and len(data) <= path.stat().st_size
    assert all(str(path) in str(cause) for cause in damage)


OPCODES = [
    b"(",
    b"]",
    b")",
    b"a",
    b"e",
    b"t",
    b"l",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x88",
    b"\x89",
    b"N",
    b"K\x05",
    b"J\1\2\3\4",
]
OPCODES += [
    b"q\0",
    b"q\1",
    b"h\0",
    b"h\1",
    b"\x94",
    b"R",
    b"b",
    b"\x93",
    b"C\x03abc",
    b"U\x02xy",
    b"\x8c\x05numpy",
    b"0",
]
OPCODES += [
    b"\x8c\x05dtype",
    b"\x8c\x02u1",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cos\nsystem\n",
]
OPCODES += [
    b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"X\x02\0\0\0ab",
    b"I1\n",
    b"2",
    b"}",
    b"\x81",
    b".",
]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(OPCODES), max_size=25))
def test_any_row_of_opcodes_is_a_plain_value_or_an_error(tmp_path_factory, opcodes):
    path = tmp_path_factory.mktemp("pickle") / "a.bin"
    path.write_bytes(b"\x80\x02" + b"".join(opcodes) + b".")
    try:
        value = read_pickle(path)
    except DamagedFile as cause:
        assert str(path) in str(cause)
    else:
        types = type(value).__name__
        assert isinstance(value, int | str | bytes | list | tuple | Array | None) or types in ("_Name", "_Dtype")

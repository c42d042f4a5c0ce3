"""A short run of the fuzzer, in a process of its own so that a crash is a failure and not the end of the tests; and
hypothesis on the two readers of our own, with inputs that are whole but for what it chooses."""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_fuzz import MOST_MEMORY_BYTES, chunks, mutated

from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.data.sources.recordio import RecordFile
from attfc_cuda.evaluation.restricted_pickle import Array, read_pickle

SCRIPT = Path(__file__).with_name("run_fuzz.py")


@pytest.mark.parametrize("inputs", [1000, pytest.param(100_000, marks=pytest.mark.proof)])
def test_damaged_files_are_errors_and_nothing_worse(tmp_path, inputs):
    arguments = ["--inputs", str(inputs), "--seed", "20", "--keep", str(tmp_path), "--processes", "2"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert set(report["targets"]) == set(TARGETS) and report["inputs"] >= 0.99 * inputs
    # Some inputs must get past the first check, or nothing behind it was fuzzed.
    assert all(counts["read"] > 0 for counts in report["targets"].values()), report
    assert 0 < report["most_memory_mib"] * 2**20 <= MOST_MEMORY_BYTES  # the run itself ends at the first above it


def test_the_fuzzer_finds_a_planted_fault(tmp_path):
    """A reader that indexes past what it got: the fuzzer must notice the untyped error within the short run."""
    plant = """
import os, sys
sys.argv[0] = sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1))
import attfc_cuda.data.sources.checked_file as m

def read(self, start, length):
    with self.descriptor() as descriptor:
        content = os.pread(descriptor, min(length, 2**20), start)
    return content if len(content) == length else content[length]

m.CheckedFile.read = read
import run_fuzz
sys.exit(run_fuzz.main())
"""
    arguments = [
        str(SCRIPT),
        str(SCRIPT.parent),
        "--inputs",
        "600",
        "--targets",
        "rec",
        "--processes",
        "1",
        "--keep",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-c", plant, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "broke a rule, kept as" in done.stderr, done.stderr[-2000:]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fuzzer_finds_memory_above_the_limit(tmp_path):
    """A decoder that first makes room for what a header claims: 8 bytes a pixel of a picture of a billion."""
    plant = """
import sys
sys.argv[0] = sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1))
import run_fuzz
import attfc_cuda.data.images as m

def require_pixels(width, height):
    b"\\1" * min(8 * width * height, 2**28)
    m.max_image_pixels() >= width * height or m.require_bytes(2**40)

m.require_pixels = require_pixels
sys.exit(run_fuzz.main())
"""
    arguments = [str(SCRIPT), str(SCRIPT.parent), "--inputs", "400", "--targets", "image", "--processes", "1"]
    arguments += ["--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", plant, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "bytes of memory, more than" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("name", list(TARGETS))
def test_whole_files_are_read(tmp_path, name):
    target = TARGETS[name]
    whole = target.seeds(tmp_path)
    read = [target.run(data, tmp_path) for data in whole]
    assert sum(read) >= len(whole) - 2 * (name == "bin")  # two of the .bin are hostile from the start


def test_inputs_are_the_same_for_the_same_seed():
    seeds = [b"abcdefgh" * 20, b"xyz"]
    first, again, other = ([mutated(seeds, rng) for _ in range(50)] for rng in map(random.Random, (1, 1, 2)))
    assert first == again != other


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_each_input_is_made_by_one_process(processes):
    options = SimpleNamespace(inputs=10_000, targets=list(TARGETS))
    dealt = [chunk for k in range(processes) for chunk in chunks(options)[k::processes]]
    assert sorted(dealt) == sorted(chunks(options)) and abs(sum(count for *_, count in dealt) - 10_000) < 12


@pytest.mark.parametrize("name", list(TARGETS))
def test_structured_changes_are_often_read(tmp_path, name):
    target = TARGETS[name]
    rng, whole = random.Random(0), target.seeds(tmp_path)
    changed = [target.change(rng.choice(whole), rng) for _ in range(120)]
    read = sum(target.run(data, tmp_path) for data in changed)
    assert len(set(changed)) > 80 and read >= 8


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

"""Feeds damaged and hostile files to every reader: `python tests/fuzz/run_fuzz.py --inputs 100000 [--seed 1]`.

What is read, and which errors may come of it: `fuzz_targets.py`. The inputs are dealt to `--processes`, whose crash is
seen; in each, memory is limited and its peak is measured (with the limits of one image set to a mebibyte and a million
pixels), each input has a time limit, and an audit hook sees what a pickle would run. Prints the counts as JSON. An
input that breaks a rule is kept, and the exit code is 1; the same seed makes the same inputs, whatever the number of
processes. The test suite runs a short one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 2**20, 2**20
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fuzz_targets import TARGETS  # noqa: E402

from attfc_cuda.data.sources import index_cache  # noqa: E402

# A hang is for ever. Time of this process, since a loaded machine may stop it for a minute; and the clock's, for what
# waits without working.
CPU_SECONDS_AN_INPUT, SECONDS_AN_INPUT = 20, 600
ADDRESS_SPACE_BYTES = 2**31
# What reading may take: an image at the limits, encoded and decoded in up to four forms of 4 bytes a pixel (as stored,
# RGBA, its RGB, the cut); the files, of a few mebibytes at most, several times; and what the allocator holds back.
MOST_MEMORY_BYTES = MAX_IMAGE_BYTES + 16 * MAX_IMAGE_PIXELS + 2**25 + 2**26
CHUNK = 250  # inputs that one process makes in a row
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 24, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**29 - 1, 2**29, 2**31 - 1, 2**31]
NUMBERS += [2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0xCED7230A]
# What a program must not do while it reads a stranger's file.
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.putenv", "pickle.find_class", "ctypes.dlopen",
    "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
}  # fmt: skip
STRUCTURED_SHARE = 0.6


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """A seed after one to five changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        size = len(data)
        at = rng.randrange(size + 1)
        if rng.random() < 0.3:  # headers are short and matter most
            at = min(at, rng.randrange(64))
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind in (1, 2) and at < size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            width = rng.choice((1, 2, 4, 4, 4, 8))
            number = rng.choice([*NUMBERS, size, size - at, at]) & (1 << 8 * width) - 1
            data[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 3, 4, 17, 512)))
        elif kind == 5:
            del data[at : at + rng.choice((1, 4, 8, 512))]
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start:]
        elif kind == 7:
            piece = data[at : at + rng.choice((4, 64, 512, 4096))]
            data[at:at] = piece * rng.choice((1, 2, 30))
        elif at < size:
            data[at : at + 12] = rng.choice((b"9" * 12, b"-1", b"\xff" * 12, b"\0" * 12, b"1e999", b"\n\t\n"))
    return bytes(data)


class Watch:
    """Limits on what one input may do and take."""

    def __init__(self) -> None:
        self.reading = ""
        faulthandler.enable()
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, self._too_slow)

    def limit_memory(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_BYTES, used + ADDRESS_SPACE_BYTES))
        sys.addaudithook(self._audit)

    @contextlib.contextmanager
    def over(self, target: str):
        self._limit(CPU_SECONDS_AN_INPUT, SECONDS_AN_INPUT)
        self.reading = target
        try:
            yield
        finally:
            self.reading = ""
            self._limit(0, 0)

    def _limit(self, work: float, clock: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, work)
        signal.alarm(clock)

    def _too_slow(self, number: int, frame: object) -> None:
        raise TimeoutError(f"an input took over {CPU_SECONDS_AN_INPUT} s of work or {SECONDS_AN_INPUT} s in all")

    def _audit(self, event: str, arguments: tuple) -> None:
        looks_for_gpus = event == "ctypes.dlopen" and "nvidia" in str(arguments)
        if event in FORBIDDEN and self.reading and not looks_for_gpus:
            raise AssertionError(f"{event} was called with {arguments!r}")


def resident_bytes(peak: bool = False) -> int:
    """Memory of this process; its peak since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Where the system cannot, the peak is that since the process began."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def chunks(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """(target, first input, inputs) of all the run."""
    weights = {target: TARGETS[target].weight for target in options.targets}
    found = []
    for target, weight in weights.items():
        total = max(1, round(options.inputs * weight / sum(weights.values())))
        found += [(target, first, min(CHUNK, total - first)) for first in range(0, total, CHUNK)]
    return found


def made(target: str, seeds: list[bytes], rng: random.Random) -> bytes:
    """One input: a seed changed within its structure, or anywhere."""
    if rng.random() < STRUCTURED_SHARE:
        return TARGETS[target].change(rng.choice(seeds), rng)
    return mutated(seeds, rng)


def fuzz(options: argparse.Namespace, folder: Path) -> dict | None:
    """This process's part of the inputs; None once one has broken a rule."""
    watch = Watch()
    seeds = {target: TARGETS[target].seeds(folder) for target in options.targets}
    for target in options.targets:  # everything that is imported late is imported before the limits are set
        for data in seeds[target]:
            TARGETS[target].run(data, folder)
    watch.limit_memory()
    counts = {
        target: {"inputs": 0, "read": 0, "cpu_seconds": 0.0, "most_memory_mib": 0.0} for target in options.targets
    }
    slowest, number, of = 0.0, *map(int, options.part.split("/"))
    for target, first, count in chunks(options)[number::of]:
        tally, begin, data = counts[target], time.process_time(), b""
        rng = random.Random(f"{options.seed} {target} {first}")  # the same whichever process makes them
        for place in range(first, first + count):
            try:
                data = made(target, seeds[target], rng)
                forget_peak()
                before, start = resident_bytes(), time.monotonic()
                with watch.over(target):
                    tally["read"] += TARGETS[target].run(data, folder)
                slowest = max(slowest, time.monotonic() - start)
                taken = resident_bytes(peak=True) - before
                tally["most_memory_mib"] = max(tally["most_memory_mib"], round(taken / 2**20, 1))
                assert taken <= MOST_MEMORY_BYTES, f"{taken} bytes of memory, more than {MOST_MEMORY_BYTES}"
                assert not (folder / "was_run").exists(), "a file ran a command"
            except BaseException as cause:
                options.keep.mkdir(parents=True, exist_ok=True)
                kept = options.keep / f"{target.replace(' ', '_')}_{options.seed}_{place}"
                kept.write_bytes(data)
                traceback.print_exception(cause)
                print(f"input {place} of {target} broke a rule, kept as {kept}", file=sys.stderr)
                if not options.go_on:
                    return None
        tally["inputs"] += count
        tally["cpu_seconds"] += time.process_time() - begin
    return {"targets": counts, "slowest_s": slowest}


def merged(reports: list[dict], seconds: float) -> dict:
    targets = {}
    for name in reports[0]["targets"]:
        parts = [report["targets"][name] for report in reports]
        targets[name] = {key: sum(part[key] for part in parts) for key in ("inputs", "read")}
        targets[name]["cpu_seconds"] = round(sum(part["cpu_seconds"] for part in parts), 1)
        targets[name]["most_memory_mib"] = max(part["most_memory_mib"] for part in parts)
    return {
        "inputs": sum(counts["inputs"] for counts in targets.values()),
        "targets": targets,
        "slowest_s": round(max(report["slowest_s"] for report in reports), 3),
        "most_memory_mib": max(counts["most_memory_mib"] for counts in targets.values()),
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "attfc_fuzz")
    parser.add_argument("--go-on", action="store_true", help="after an input that breaks a rule")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # K/N, given to one of N processes
    options = parser.parse_args()
    started = time.monotonic()
    if not options.part and options.processes > 1:
        command = [sys.executable, *sys.argv]
        parts = [
            subprocess.Popen([*command, "--part", f"{k}/{options.processes}"], stdout=subprocess.PIPE, text=True)
            for k in range(options.processes)
        ]
        outputs = [part.communicate()[0] for part in parts]
        for part in parts:
            if part.returncode:
                print(f"a process ended with {part.returncode}", file=sys.stderr)
                return 1
        reports = [json.loads(output.splitlines()[-1]) for output in outputs]
    else:
        options.keep, home = options.keep.absolute(), os.getcwd()
        options.part = options.part or "0/1"
        memory = Path("/dev/shm")  # what is written is read once: no disk needs to see it
        with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
            os.chdir(name)
            os.environ["XDG_CACHE_HOME"] = name
            index_cache._TICK_NS = 0  # each input would wait for it; no index of an input outlives it (`write_anew`)
            os.environ["ATTFC_MAX_IMAGE_BYTES"] = str(MAX_IMAGE_BYTES)
            os.environ["ATTFC_MAX_IMAGE_PIXELS"] = str(MAX_IMAGE_PIXELS)
            report = fuzz(options, Path(name))
            os.chdir(home)
        if report is None:
            return 1
        if options.part != "0/1":
            print(json.dumps(report))
            return 0
        reports = [report]
    print(json.dumps(merged(reports, time.monotonic() - started)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

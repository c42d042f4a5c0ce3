"""Feeds damaged and hostile files to every reader: `python tests/fuzz/run_fuzz.py --inputs 100000 [--seed 1]`.

One process, so that a crash of it is seen; its memory is limited, each input has a time limit, and an audit hook sees
what a pickle would run. Prints the counts as JSON. An input that breaks a rule is kept, and the exit code is 1; the
same seed makes the same inputs. The test suite runs a short one.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fuzz_targets import SHARES, STRUCTURED, TARGETS  # noqa: E402

# A hang is for ever. Time of this process, since a loaded machine may stop it for a minute; and the clock's, for what
# waits without working.
CPU_SECONDS_AN_INPUT, SECONDS_AN_INPUT = 20, 600
MEMORY_BYTES = 2**31
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    24,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**24,
    2**29 - 1,
    2**29,
    2**31 - 1,
    2**31,
    2**32 - 1,
]
NUMBERS += [2**62, 2**63 - 1, 2**63, 2**64 - 1, 0xCED7230A]
# What a program must not do while it reads a stranger's file.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.putenv", "pickle.find_class", "ctypes.dlopen"}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "attfc_fuzz")
    options = parser.parse_args()

    faulthandler.enable()
    reading = [""]

    def audit(event: str, arguments: tuple) -> None:
        if reading[0] and reading[0] != "lmdb" and event in FORBIDDEN:
            raise AssertionError(f"{event} was called with {arguments!r}")

    def too_slow(number: int, frame: object) -> None:
        raise TimeoutError(f"an input took over {CPU_SECONDS_AN_INPUT} s of work or {SECONDS_AN_INPUT} s in all")

    def limit(work: float, clock: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, work)
        signal.alarm(clock)

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_slow)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = name
        seeds = {target: TARGETS[target][0](folder) for target in options.targets}
        for target in options.targets:  # everything that is imported late is imported before the limits are set
            TARGETS[target][1](seeds[target][0], folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.addaudithook(audit)

        weight = {target: SHARES.get(target, 1.0) for target in options.targets}
        counts, slowest, started = {}, 0.0, time.monotonic()
        for target in options.targets:
            total = max(1, round(options.inputs * weight[target] / sum(weight.values())))
            rng, read = random.Random(f"{options.seed} {target}"), 0
            for number in range(total):
                if target in STRUCTURED and rng.random() < 0.6:
                    data = STRUCTURED[target](rng.choice(seeds[target]), rng)
                else:
                    data = mutated(seeds[target], rng)
                start, reading[0] = time.monotonic(), target
                limit(CPU_SECONDS_AN_INPUT, SECONDS_AN_INPUT)
                try:
                    read += TARGETS[target][1](data, folder)
                except BaseException as cause:
                    reading[0] = ""
                    limit(0, 0)
                    options.keep.mkdir(parents=True, exist_ok=True)
                    kept = options.keep / f"{target.replace(' ', '_')}_{options.seed}_{number}"
                    kept.write_bytes(data)
                    traceback.print_exception(cause)
                    print(f"input {number} of {target} broke a rule, kept as {kept}", file=sys.stderr)
                    return 1
                finally:
                    limit(0, 0)
                    reading[0] = ""
                slowest = max(slowest, time.monotonic() - start)
                assert not (folder / "was_run").exists()
            counts[target] = {"inputs": total, "read": int(read)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
        report = {
            "inputs": sum(c["inputs"] for c in counts.values()),
            "targets": counts,
            "slowest_s": round(slowest, 3),
        }
        print(json.dumps({**report, "more_memory_mib": peak // 1024, "seconds": round(time.monotonic() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

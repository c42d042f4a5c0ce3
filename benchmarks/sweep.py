"""Times the loss and its gradient over class centres alone against plain PyTorch and measures memory; heads: run.py.

    python benchmarks/sweep.py                              # B 384, S 100 000, D 512, float32 and bfloat16
    python benchmarks/sweep.py --case trained-centers       # gradients of the embeddings and of raw centres
    python benchmarks/sweep.py --shape small --rounds 3     # a quick look
    python benchmarks/sweep.py --output benchmarks/results/NAME.json

Every contender is checked against float64 before it is timed, in a process of its own (worker.py). Times are medians
over rounds in turn with the bare X @ W.T. "x best" is the multiple of that product in float32 or in the row's dtype,
whichever is faster here (a processor without 16-bit arithmetic takes three times as long for the bfloat16 one, and
multiples of it flatter); "x product" of the one in the row's dtype. Memory is the peak above the inputs (and the
gradient of the centres).

"cold": random centres, all of which carry probability. "warm": as late in training, most tiles of centres left out of
the gradient (grad_tolerance 2^-12), at scale 64 and m 0.5, as published. At the trainer's defaults the same inputs give
a flatter softmax, of which less can be left out: a row of its own.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402
import table  # noqa: E402
import worker  # noqa: E402
from contenders import CONTENDERS  # noqa: E402
from problem import CONTAINER, DTYPES, TRAINED_CENTERS, Problem  # noqa: E402

SHAPES = {  # batch, centres, dim
    "small": (128, 10_000, 512),
    "ms1m-container": (384, 27_648, 512),
    "100k": (384, 100_000, 512),
    "1m": (384, 1_000_000, 512),
}


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=(CONTAINER, TRAINED_CENTERS), default=CONTAINER)
    parser.add_argument("--shape", choices=SHAPES, default="100k")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", metavar="NAME", default=None, help="default: all of the case")
    reports.add_rounds(parser, 9)
    reports.add_threads(parser)
    reports.add_output(parser)
    arguments = parser.parse_args(given)
    known = CONTENDERS[arguments.case]
    arguments.contenders = arguments.contenders or list(known)
    for name in arguments.contenders:
        if name not in known:
            parser.error(f"--contenders must be of {', '.join(map(repr, known))}, got {name!r}")
    reports.check_output(parser, arguments)
    return arguments


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)  # for the environment; the processes set their own
    batch, slots, dim = SHAPES[arguments.shape]
    limit_bytes = measure.free_bytes("cpu")
    report = {
        "schema": reports.SWEEP,
        "environment": measure.environment(),
        "command": "python " + shlex.join(["benchmarks/sweep.py", *(sys.argv[1:] if given is None else given)]),
        "case": arguments.case,
        "shape": {"rows": batch, "slots": slots, "dim": dim},
        "rows": [],
    }
    for dtype in arguments.dtypes:
        for name in arguments.contenders:
            print(f"{dtype}, {name} ...", file=sys.stderr, flush=True)
            margin = CONTENDERS[arguments.case][name].margins[0]
            problem = Problem(slots, batch, dim, dtype, "cpu", margin, task=arguments.case)
            job = worker.Job(name, problem, float("inf"), arguments.rounds, limit_bytes, arguments.threads, whole=True)
            report["rows"].append({"case": arguments.case, **worker.in_fresh_process(job)})
            if arguments.output:
                reports.write(arguments.output, report)
    table.show(report["rows"])
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items() if value is not None))
    if arguments.output:
        print(f"written: {arguments.output}")
    worker.exit_on_failures("sweep.py", report["rows"])


if __name__ == "__main__":
    main()

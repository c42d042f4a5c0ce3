"""Times the CPU sweep over centres in 16 bits beside the same sweep in float32.

    python benchmarks/storage.py                                     # S 65 536, D 512 and 128, one thread and two
    ATTFC_CPU_CAPABILITY=generic python benchmarks/storage.py        # the kernels of another instruction set
    python benchmarks/storage.py --output benchmarks/results/storage_NAME.json

On a processor without 16-bit arithmetic such a format is one of storage alone: the kernels widen a tile of centres once
for all rows of a task, and multiply in float32. So bfloat16 must not be slower than float32 there; "x float32" is the
ratio of the fastest rounds, taken in turn. Before it is timed each sweep is checked: over the same numbers the formats
agree within the rounding of 16 bits.

warm: the inputs of sweep.py's rows of that name, at scale 64 and m 0.5; flat: the same at the trainer's defaults; cold:
random centres.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402
from problem import CONTAINER, DTYPES, Inputs, Problem, make_inputs  # noqa: E402

from attfc_cuda.ops import backend  # noqa: E402

INPUTS = {"warm": ("trained", 64.0, 0.5), "flat": ("trained", 24.0, 0.2), "cold": ("random", 64.0, 0.5)}
FORWARD, BOTH, CENTERS = "forward", "forward and gradient", "gradient of centres"
_TOLERANCE = 2.0**-12


def operations(inputs: Inputs, scale: float, m_rad: float) -> dict[str, tuple[Callable[[], Any], Tensor]]:
    """What is timed, each with its result."""
    rows, centers = inputs.embeddings.detach(), inputs.centers
    assert centers is not None
    cosine = (rows.float() * centers[inputs.labels].float()).sum(dim=1).clamp(-1, 1)
    row_values = (scale * (cosine.acos() + m_rad).cos())[None]
    ids = (inputs.labels, inputs.center_labels, None, row_values, scale, _TOLERANCE)

    def sweep(need_grad: bool) -> tuple[Tensor, ...]:
        return torch.ops.attfc.negative_logsumexp(rows, centers, *ids, need_grad, False)

    lse, upstream = sweep(False)[0], torch.full((len(rows),), 1 / len(rows))

    def of_centers() -> Tensor:
        return torch.ops.attfc.center_gradient(upstream, lse, None, rows, centers, *ids)

    return {
        FORWARD: (lambda: sweep(False), lse),
        BOTH: (lambda: sweep(True), sweep(True)[4]),
        CENTERS: (of_centers, of_centers()),
    }


def measured(given: argparse.Namespace, name: str, dim: int, threads: int) -> list[dict[str, Any]]:
    """The rows of one kind of inputs."""
    kind, scale, m_rad = INPUTS[name]
    torch.set_num_threads(threads)
    by_dtype = {}
    for dtype in ("float32", *given.dtypes):
        problem = Problem(given.centers, given.batch, dim, dtype, "cpu", "arcface", task=CONTAINER, inputs=kind)
        by_dtype[dtype] = operations(make_inputs(problem), scale, m_rad)
    rows = []
    for what, (_, expected) in by_dtype["float32"].items():
        for dtype in given.dtypes:
            # A logit is off by the rounding of both its unit vectors, times the scale.
            allowed = max(8 * scale * torch.finfo(DTYPES[dtype]).eps, 2 * _TOLERANCE)
            difference = (by_dtype[dtype][what][1].float() - expected).norm() / expected.norm()
            assert difference <= allowed, f"{what}, {dtype}: off by {difference:.2g} of {allowed:.2g}"
        times = measure.time_interleaved({dtype: found[what][0] for dtype, found in by_dtype.items()}, given.rounds)
        for dtype, spread in times.items():
            ratio = spread["best_s"] / times["float32"]["best_s"]
            place = {"inputs": name, "what": what, "centers": given.centers, "batch": given.batch, "dim": dim}
            rows.append({**place, "threads": threads, "dtype": dtype, **spread, "x_float32": ratio})
    return rows


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--centers", type=int, default=65_536)
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16"), default=["bfloat16"])
    reports.add_rounds(parser, 6)
    reports.add_output(parser)
    given = parser.parse_args(arguments)
    reports.check_output(parser, given)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if reason := backend.why_not("cpu"):
        raise SystemExit(f"storage.py: needs the CPU extension: {reason}")
    environment = measure.environment() | {"cpu_capability": backend.build_config()["cpu_capability"]}
    command = "python " + shlex.join(["benchmarks/storage.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = {"schema": reports.STORAGE, "environment": environment, "command": command, "rows": []}
    for dim in given.dims:
        for name in given.inputs:
            for threads in given.threads:
                rows = measured(given, name, dim, threads)
                report["rows"] += rows
                show(rows)
                if given.output:
                    reports.write(given.output, report)
    ratios = [row["x_float32"] for row in report["rows"] if row["dtype"] != "float32"]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"{environment['cpu_capability']}: x float32 {min(ratios):.2f} to {max(ratios):.2f}, mean {mean:.2f}")


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each row."""
    for row in rows:
        place = f"D {row['dim']:>3}, {row['threads']} thread{'s' if row['threads'] > 1 else ' '}"
        time = reports.seconds_text(row["best_s"])
        print(f"{row['inputs']:4}  {place}  {row['what']:20}  {row['dtype']:8}  {time:>8}  x {row['x_float32']:.2f}")


if __name__ == "__main__":
    main()

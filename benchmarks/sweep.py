"""Times the sweep alone against plain PyTorch on this machine and measures memory; whole heads: run.py.

    python benchmarks/sweep.py                              # B 384, S 100 000, D 512, float32 and bfloat16
    python benchmarks/sweep.py --case trained-centers       # gradients of the embeddings and of raw centres
    python benchmarks/sweep.py --shape small --rounds 3     # a quick look
    python benchmarks/sweep.py --output benchmarks/results/NAME.json

Every contender is checked against float64 on a small shape before it is timed. Times are medians over rounds in turn
with the bare X @ W.T of the same dtype alone: beside others, a contender pays the page faults of the memory that they
left in pieces. "x product" compares with that product: medians, and the best of each for a busy machine. Memory is the
peak above the inputs (and the gradient of the centres) in a fresh process.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import cases  # noqa: E402
import measure  # noqa: E402
import reports  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=cases.CASES, default="container")
    parser.add_argument("--shape", choices=cases.SHAPES, default="100k")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", metavar="NAME", default=None, help="default: all of the case")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, 2 or more (one more warms up)")
    reports.add_threads(parser)
    parser.add_argument("--no-memory", action="store_true", help="skip the memory column")
    reports.add_output(parser)
    parser.add_argument("--peak-of", default=None, help=argparse.SUPPRESS)  # what the fresh processes are called with
    arguments = parser.parse_args()
    known = cases.CASES[arguments.case].contenders
    arguments.contenders = arguments.contenders or list(known)
    for name in arguments.contenders:
        if name not in known:
            parser.error(f"--contenders must be of {', '.join(map(repr, known))}, got {name!r}")
    if arguments.rounds < 2:
        parser.error("--rounds must be 2 or more")
    reports.check_output(parser, arguments)
    return arguments


def peak_in_fresh_process(name: str, arguments: argparse.Namespace, dtype: str) -> float | None:
    command = [sys.executable, __file__, "--peak-of", name, "--case", arguments.case]
    command += ["--shape", arguments.shape, "--dtypes", dtype]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_here(name: str, case: cases.Case, shape: cases.Shape, dtype: str) -> float | None:
    contender = case.contenders[name]
    measure.frugal_allocator()
    # Loads and compiles on another shape; the timed shape's buffers are then all new.
    contender.run(cases.make_inputs(cases.SHAPES["small"], cases.DTYPES[dtype], contender.kind, case.raw))
    inputs = cases.make_inputs(shape, cases.DTYPES[dtype], contender.kind, case.raw)
    peak = measure.peak_above_start_mib(lambda: contender.run(inputs))
    has_center_gradient = case.raw and contender is not cases.PRODUCT
    return peak if peak is None or not has_center_gradient else peak - inputs.centers.nbytes / 2**20


def rows_of(dtype: str, arguments: argparse.Namespace) -> list[dict]:
    case, shape = cases.CASES[arguments.case], cases.SHAPES[arguments.shape]
    errors = {}
    for name in arguments.contenders:
        contender = case.contenders[name]
        if contender.truth is not None:
            print(f"checking {dtype} {name} ...", file=sys.stderr)
            small = cases.make_inputs(cases.SHAPES["small"], cases.DTYPES[dtype], contender.kind, case.raw)
            errors[name] = cases.check(contender, small, cases.DTYPES[dtype])
    inputs = {kind: cases.make_inputs(shape, cases.DTYPES[dtype], kind, case.raw) for kind in ("random", "trained")}
    names = list(dict.fromkeys(["bare product", *arguments.contenders]))
    print(f"timing {dtype}: {arguments.rounds} rounds of {len(names)} ", end="", file=sys.stderr, flush=True)
    rows = []
    for name in names:
        contender = case.contenders[name]
        pair = {
            "bare product": functools.partial(cases.bare_product, inputs["random"]),
            name: functools.partial(contender.run, inputs[contender.kind]),
        }
        times = measure.time_interleaved(pair, arguments.rounds, lambda _: None)
        print(".", end="", file=sys.stderr, flush=True)
        bare = times["bare product"]
        peak = None if arguments.no_memory else peak_in_fresh_process(name, arguments, dtype)
        seconds = times[name]["median_s"]
        rows.append(
            {
                "contender": name,
                "dtype": dtype,
                **times[name],
                "x_product": seconds / bare["median_s"],
                "x_product_best": times[name]["best_s"] / bare["best_s"],
                "gflop_per_s": (1 if name == "bare product" else case.products) * shape.product_flop / seconds / 1e9,
                "peak_mib": peak,
                "note": contender.note,
                **errors.get(name, {}),
            }
        )
    print(file=sys.stderr)
    return rows


def print_table(rows: list[dict]) -> None:
    heads = f"{'ms':>8}{'20%':>8}{'80%':>8} {'x product':>10} {'x best':>7} {'GFLOP/s':>8} {'MiB':>7}"
    print(f"{'dtype':<9} {'contender':<27} {heads}")
    for row in rows:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        times = "".join(f"{1e3 * row[key]:>8.1f}" for key in ("median_s", "p20_s", "p80_s"))
        ratios = f"{row['x_product']:>10.2f} {row['x_product_best']:>7.2f} {row['gflop_per_s']:>8.0f} {peak:>7}"
        print(f"{row['dtype']:<9} {row['contender']:<27} {times} {ratios}  {row['note']}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(
            json.dumps(
                peak_here(
                    arguments.peak_of, cases.CASES[arguments.case], cases.SHAPES[arguments.shape], arguments.dtypes[0]
                )
            )
        )
        return
    environment, shape = measure.environment(), cases.SHAPES[arguments.shape]
    rows: list[dict] = []
    for dtype in arguments.dtypes:
        rows += rows_of(dtype, arguments)
        if arguments.output:
            report = {"environment": environment, "case": arguments.case, "shape": vars(shape), "rows": rows}
            reports.write(arguments.output, report)
    print_table(rows)
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value is not None))
    if arguments.output:
        print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()

"""Run in a fresh process: largest resident set of two steps of a head, from before it is made, in bytes on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from attfc_cuda.ops import backend as _backend
from attfc_cuda.plan import rates
from attfc_cuda.plan.heads import Head
from attfc_cuda.train.objective import DTYPES

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import measure


def main() -> None:
    options = json.loads(sys.argv[1])
    identities, dim, batch, precision = (options.pop(key) for key in ("identities", "dim", "batch", "precision"))
    head = Head("measured", **options)
    _backend.available("cpu")
    measure.frugal_allocator()
    # Whatever libraries take at their first use is not the head's.
    rates.head_step(head, 4 * batch, dim, batch, "cpu", DTYPES[precision])()

    def make_and_run() -> None:
        step = rates.head_step(head, identities, dim, batch, "cpu", DTYPES[precision])
        step()
        step()

    print(round(measure.peak_above_start_mib(make_and_run) * 2**20))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Run in a fresh process: largest resident set of two steps of a head, from before it is made, in bytes on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from attfc_cuda import _backend
from attfc_cuda.plan import rates
from attfc_cuda.plan.heads import Head
from attfc_cuda.train.objective import DTYPES


def field(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    options = json.loads(sys.argv[1])
    identities, dim, batch, precision = (options.pop(key) for key in ("identities", "dim", "batch", "precision"))
    head = Head("measured", **options)
    _backend.available("cpu")
    # Whatever libraries take at their first use is not the head's.
    rates.head_step(head, 4 * batch, dim, batch, "cpu", DTYPES[precision])()
    Path("/proc/self/clear_refs").write_text("5")
    before, mapped = field("VmRSS:"), field("RssFile:")
    step = rates.head_step(head, identities, dim, batch, "cpu", DTYPES[precision])
    step()
    step()
    # Pages of libraries come and go as the system likes; a head's memory is none of them.
    print(field("VmHWM:") - before - max(0, field("RssFile:") - mapped))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

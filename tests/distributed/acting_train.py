"""`attfc train` in which a process does something in a forward pass, ATTFC_ACT="<rank> <forward pass, from 1> <what>":
a number: sends itself that signal; "workers": kills the processes that prepare its batches; "data": its faces go away.
With ATTFC_ACT="<rank> -1 <identities>x<images>" it has other data. `{rank}` in --data is the process's own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

from torch import Tensor, nn

from attfc_cuda.cli import main
from attfc_cuda.data import Batch
from attfc_cuda.train import Objective
from attfc_cuda.train.objective import OBJECTIVES


def act(what: str) -> None:
    if what == "workers":
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
    elif what == "data":
        folder = sys.argv[-sys.argv[::-1].index("--data")]  # the last one counts
        os.rename(folder, f"{folder} gone")
    else:
        os.kill(os.getpid(), int(what))


def acting(kind: type[Objective], rank: str, call: int, what: str) -> type[Objective]:
    calls = [0]

    class Acting(kind):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if (calls[0], os.environ["RANK"]) == (call, rank):
                act(what)
            return super().forward(backbone, batch)

    Acting.__name__ = kind.__name__
    return Acting


if __name__ == "__main__":
    sys.argv = [argument.replace("{rank}", os.environ["RANK"]) for argument in sys.argv]
    head = sys.argv[sys.argv.index("--head") + 1]
    rank, call, what = os.environ.get("ATTFC_ACT", "0 0 0").split()
    if call == "-1":
        data = sys.argv.index("--data") + 1
        sys.argv[data] = f"procedural:{what}" if os.environ["RANK"] == rank else sys.argv[data]
        sys.exit(main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:], acting(OBJECTIVES[head], rank, int(call), what)))

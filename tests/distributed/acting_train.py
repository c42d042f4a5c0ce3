"""`attfc train` in which a process sends itself a signal, ATTFC_ACT="<rank> <forward pass, from 1> <signal number>", or
has other data, ATTFC_ACT="<rank> -1 <identities>x<images>"."""

from __future__ import annotations

import os
import sys

from torch import Tensor, nn

from attfc_cuda.cli import main
from attfc_cuda.data import Batch
from attfc_cuda.train import Objective
from attfc_cuda.train.objective import OBJECTIVES


def acting(kind: type[Objective], rank: int, call: int, number: int) -> type[Objective]:
    calls = [0]

    class Acting(kind):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if (calls[0], os.environ["RANK"]) == (call, str(rank)):
                os.kill(os.getpid(), number)
            return super().forward(backbone, batch)

    Acting.__name__ = kind.__name__
    return Acting


if __name__ == "__main__":
    head = sys.argv[sys.argv.index("--head") + 1]
    rank, call, what = os.environ.get("ATTFC_ACT", "0 0 0").split()
    if call == "-1":
        data = sys.argv.index("--data") + 1
        sys.argv[data] = f"procedural:{what}" if os.environ["RANK"] == rank else sys.argv[data]
        sys.exit(main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:], acting(OBJECTIVES[head], int(rank), int(call), int(what))))

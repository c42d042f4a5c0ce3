"""`attfc train` in which a process does something in a forward pass, ATTFC_ACT="<rank> <forward pass, from 1> <what>":
a number: sends itself that signal; "workers": kills the processes that prepare its batches; "data": its faces go away;
"late", "full", "killed": writing its parts of the checkpoints to come waits for three more forward passes, fails, ends
it half-way; "file full": their file fails, after the parts. With ATTFC_ACT="<rank> -1 <identities>x<images>" it has
other data. The rank "*" is every one. `{rank}` in --data is the process's own."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn

from attfc_cuda.cli import main
from attfc_cuda.data import Batch
from attfc_cuda.train import Objective, archive, checkpoint
from attfc_cuda.train.objective import OBJECTIVES

WRITE = archive.write  # before it is replaced


def write_otherwise(how: str, calls: list[int]) -> None:
    """The checkpoints of steps from this one on. calls: [forward passes begun]."""
    now, where = calls[0], r"step_(\d+)\.pt" if how == "file full" else r"step_(\d+)\.shards"

    def write(state: Any, file: BinaryIO, streamed: dict | None = None) -> None:
        found = re.search(where, file.name)
        if found is None or int(found[1]) < now or how == "late":
            while found is not None and how == "late" and calls[0] < now + 3:
                time.sleep(0.01)
            WRITE(state, file, streamed)
            return
        file.write(b"half of it")
        file.flush()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    archive.write = write


def act(what: str, calls: list[int]) -> None:
    if what in ("late", "full", "file full", "killed"):
        write_otherwise(what, calls)
    elif what == "workers":
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
    elif what == "data":
        folder = sys.argv[-sys.argv[::-1].index("--data")]  # the last one counts
        os.rename(folder, f"{folder} gone")
    else:
        os.kill(os.getpid(), int(what))


def acting(kind: type[Objective], rank: str, call: int, what: str) -> type[Objective]:
    calls, run = [0], Path(sys.argv[-sys.argv[::-1].index("--run")])

    class Acting(kind):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == call and rank in (os.environ["RANK"], "*"):
                act(what, calls)
            if what == "late" and calls[0] == call + 3:
                saved = [path.name for path in checkpoint.find(run / "checkpoints")]
                print(f"in step {calls[0]}, saved: {saved}", flush=True)
            return super().forward(backbone, batch)

    Acting.__name__ = kind.__name__
    return Acting


if __name__ == "__main__":
    sys.argv = [argument.replace("{rank}", os.environ["RANK"]) for argument in sys.argv]
    head = sys.argv[sys.argv.index("--head") + 1]
    rank, call, what = os.environ.get("ATTFC_ACT", "0 0 0").split(maxsplit=2)
    if call == "-1":
        data = sys.argv.index("--data") + 1
        sys.argv[data] = f"procedural:{what}" if os.environ["RANK"] == rank else sys.argv[data]
        sys.exit(main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:], acting(OBJECTIVES[head], rank, int(call), what)))

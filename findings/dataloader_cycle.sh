#!/usr/bin/env bash
# torch 2.14.1, DataLoader(persistent_workers=True). Expected: an object that owns such a loader and is part of a
# reference cycle (a trainer whose data set or sampler knows it, an exception's traceback) is garbage collected, and
# the workers, which have nothing left to do, end with it at once: the iterator's __del__ asks them to, as it does
# without a cycle, where they are gone within a tenth of a second.
# Seen (Python 3.11): the collection stands still for 5 seconds for each worker, and ends it by SIGTERM then. Python
# runs the finalizers of the multiprocessing queues, which hang on weak references, before any __del__ of the same
# collection; what __del__ then puts into a queue, nobody sends. Face-recognition loaders keep their workers from epoch
# to epoch: with eight of them a notebook, or a sweep of runs, stops for 40 seconds, anywhere, as collections come when
# they come.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
cat > cycle.py <<'PY'
import gc
import time

import torch
from torch.utils.data import DataLoader, TensorDataset


class Owner:
    def __init__(self):
        self.loader = DataLoader(TensorDataset(torch.arange(8)), num_workers=2, persistent_workers=True)


def dropped(cycle):
    """Seconds until an owner is gone whose loader has gone through an epoch."""
    owner = Owner()
    list(owner.loader)
    if cycle:
        owner.itself = owner
    began = time.perf_counter()
    del owner
    gc.collect()
    return time.perf_counter() - began


if __name__ == "__main__":
    gc.disable()  # collections come when we ask
    alone_s, cycle_s = dropped(cycle=False), dropped(cycle=True)
    print(f"seen: two workers end {alone_s:.1f} s after an owner without a cycle, {cycle_s:.1f} s after one in a cycle")
    raise SystemExit(0 if alone_s < 5 and cycle_s > 9 else 1)
PY
"$folder/venv/bin/python" cycle.py

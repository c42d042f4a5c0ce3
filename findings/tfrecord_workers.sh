#!/usr/bin/env bash
# tfrecord 1.14.6 (torch 2.14.1), TFRecordDataset in a DataLoader with workers. Expected: the workers share the records,
# as the class does with an index file, or it asks for the index.
# Seen: without an index file each worker reads the whole file: with 2 workers every record comes twice an epoch, with 3
# thrice.
# It matters because an epoch has then 2 or 3 times its steps with repeats in them, the learning-rate schedule runs out
# early, and evaluation counts each image several times.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 tfrecord==1.14.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
import sys
import warnings

import tfrecord
import torch
from tfrecord.torch.dataset import TFRecordDataset

warnings.simplefilter("ignore")
writer = tfrecord.TFRecordWriter("faces.tfrecord")
for label in range(12):
    writer.write({"label": (label, "int")})
writer.close()
subprocess.run([sys.executable, "-m", "tfrecord.tools.tfrecord2idx", "faces.tfrecord", "faces.index"], check=True)


def records(workers, index=None):
    dataset = TFRecordDataset("faces.tfrecord", index, {"label": "int"})
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers)
    return sorted(int(label) for batch in loader for label in batch["label"].flatten())


seen = {workers: len(records(workers)) for workers in (0, 1, 2, 3)}
indexed = {workers: len(records(workers, "faces.index")) for workers in (0, 1, 2, 3)}
print("seen: records in an epoch of 12, by workers:", seen, "; with an index:", indexed)
raise SystemExit(0 if seen == {0: 12, 1: 12, 2: 24, 3: 36} and set(indexed.values()) == {12} else 1)
PY

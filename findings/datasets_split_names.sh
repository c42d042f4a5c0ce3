#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face), load_dataset("imagefolder") on a folder with one sub-folder per person. Expected: one
# split "train" with every person, the sub-folders' names as labels.
# Seen: folder names are first searched for split words. "val_kilmer" and "dev_patel" read as validation folders; once
# one such name is there, the data set has that split alone and everybody else is left out, with neither an error nor a
# warning.
# It matters because celebrity sets name their folders so: a few people remain of a whole training set, numbered from 0.
# Passing data_files={"train": "faces/**"} keeps everybody.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==11.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import os

os.environ.update(HF_HOME="cache", HF_HUB_OFFLINE="1")
import datasets
from PIL import Image

datasets.disable_progress_bars()
people = ["ann_lee", "dev_patel", "joe_doe", "tom_hanks", "val_kilmer"]


def load(**options):
    loaded = datasets.load_dataset("imagefolder", **options)
    return {split: sorted({part.features["label"].int2str(i) for i in part["label"]}) for split, part in loaded.items()}


for person in people:
    os.makedirs(f"faces/{person}")
    for i in range(3):
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(f"faces/{person}/{i:04d}.png")
found = load(data_dir="faces")
named = load(data_files={"train": "faces/**"})
print("seen:", found)
print("seen: with data_files:", named)
raise SystemExit(0 if found == {"validation": ["dev_patel", "val_kilmer"]} and named == {"train": people} else 1)
PY

#!/usr/bin/env bash
# timm 1.0.31 (torch 2.14.1, torchvision 0.29.1), ImageDataset on a folder that holds two sources of people. Expected:
# each lowest folder is a class of its own, or the sources are the classes, as for torchvision's ImageFolder.
# Seen: only the last folder's name counts. ms1m/1 and glint/1, two different people, become one class, silently.
# Besides, the names are sorted as numbers are (1, 2, 10), where torchvision sorts them as text (1, 10, 2).
# It matters because sets of faces number their people from 0 each: joined under one roof, all of them are mixed
# pairwise, and class weights trained on timm's numbering are a permutation of torchvision's.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pillow==11.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import os

from PIL import Image
from timm.data import ImageDataset
from torchvision.datasets import ImageFolder

for source in ("ms1m", "glint"):
    for person in ("1", "2", "10"):
        os.makedirs(f"faces/{source}/{person}")
        Image.new("RGB", (8, 8)).save(f"faces/{source}/{person}/0.png")
dataset = ImageDataset("faces")
labels = {dataset.filename(i): dataset[i][1] for i in range(len(dataset))}
numbers = ImageFolder("faces/ms1m").class_to_idx
print("seen: timm:", labels)
print("seen: torchvision on one source:", numbers)
mixed = all(labels[f"ms1m/{person}/0.png"] == labels[f"glint/{person}/0.png"] for person in ("1", "2", "10"))
other = labels["ms1m/10/0.png"] == 2 and numbers["10"] == 1
raise SystemExit(0 if len(labels) == 6 and set(labels.values()) == {0, 1, 2} and mixed and other else 1)
PY

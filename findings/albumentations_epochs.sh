#!/usr/bin/env bash
# albumentations 2.0.8 (torch 2.14.1), a Compose in a data set behind a DataLoader with 2 workers that are started anew
# each epoch, as by default. Expected: other augmentations in each worker and each epoch; the same again only with the
# same seed.
# Seen: the generator is made once, in the parent, and each worker starts from a copy of it: both workers draw the same
# numbers, and every epoch repeats the first, with seed=137 as with no seed. Without workers all is as expected.
# It matters because each face is then augmented in one single way for the whole training: the augmentation that a
# recipe counts on is not there, and nothing but the accuracy shows it. persistent_workers=True mends the epochs, not
# the workers.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 albumentations==2.0.8 opencv-python-headless==4.12.0.88 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import albumentations
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Faces(Dataset):
    def __init__(self, seed):
        self.augment = albumentations.Compose([albumentations.RandomBrightnessContrast(p=1.0)], seed=seed)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return float(self.augment(image=np.full((8, 8, 3), 100, np.uint8))["image"].mean())


def epochs(seed, **options):
    torch.manual_seed(0)
    loader = DataLoader(Faces(seed), batch_size=1, multiprocessing_context="fork" if options else None, **options)
    return [[value.item() for value in loader] for _ in range(3)]


ok = True
for seed in (None, 137):
    without, anew, kept = epochs(seed), epochs(seed, num_workers=2), epochs(seed, num_workers=2, persistent_workers=True)
    print(f"seen: seed {seed}: brightness in two epochs with 2 workers: {anew[0]} {anew[1]}")
    ok &= without[0] != without[1] and anew[0] == anew[1] == anew[2] and anew[0][::2] == anew[0][1::2]
    ok &= kept[0] != kept[1] and kept[1][::2] == kept[1][1::2]
raise SystemExit(0 if ok else 1)
PY

#!/usr/bin/env bash
# scikit-learn 1.9.1, sklearn.preprocessing.normalize on float16 embeddings. Expected: rows of length 1 to three digits,
# as float16 allows, since every entry and every length is far below float16's largest number (65504).
# Seen: the squares are added up in float16, so a row longer than 256 has an infinite length and comes out as zeros,
# silently; numpy.linalg.norm overflows likewise. The same rows in float32 are right.
# It matters because templates are sums of many images' embeddings, often kept in float16 to save space: the people with
# the most images, and only they, lose their template, and every score against it is 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from sklearn.preprocessing import normalize

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
image = rng.standard_normal(512)
image *= 20 / np.linalg.norm(image)  # about the length of an ArcFace embedding
zeros = {}
for images in (1, 5, 12, 14, 50):
    template = (image * images).astype(np.float16)[None]
    half = np.linalg.norm(normalize(template).astype(np.float64))
    single = np.linalg.norm(normalize(template.astype(np.float32)).astype(np.float64))
    zeros[images] = half == 0
    print(f"seen: sum of {images} images: length after normalize {half:.4f}, in float32 {single:.4f}")
raise SystemExit(0 if zeros == {1: False, 5: False, 12: False, 14: True, 50: True} else 1)
PY

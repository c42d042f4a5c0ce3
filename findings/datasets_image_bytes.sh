#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face) with Pillow 11.3.0, storing PIL images in an Image column. Expected: an image that was
# opened from a file and shrunk in place (thumbnail) is stored as it is now; a JPEG that was opened from bytes keeps
# those bytes.
# Seen: the other way round in both. As long as the image knows its file's name, the file itself is stored and the
# change is lost; opened from bytes (a tar, LMDB or record file), the JPEG is compressed again at Pillow's quality 75.
# It matters because the first undoes the cropping of a data set (draft() and thumbnail() keep the name, crop() does
# not), and the second adds compression loss to every image of a converted set, seen only as smaller files.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==11.3.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import io
import os

os.environ.update(HF_HOME="cache", HF_HUB_OFFLINE="1")
import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
Image.fromarray(noise).resize((400, 400)).save("face.jpg", quality=95)
data = open("face.jpg", "rb").read()
shrunk = Image.open("face.jpg")
shrunk.thumbnail((112, 112))
from_bytes = Image.open(io.BytesIO(data))
stored = Dataset.from_dict({"image": [shrunk, from_bytes]}, features=Features({"image": ImageColumn()}))
size = stored[0]["image"].size
again = stored.cast_column("image", ImageColumn(decode=False))[1]["image"]["bytes"]
loss = np.abs(np.asarray(Image.open(io.BytesIO(data)), float) - np.asarray(stored[1]["image"], float))
print(f"seen: shrunk to {shrunk.size}, read back as {size}")
print(f"seen: JPEG of {len(data)} bytes stored as {len(again)}; mean error {loss.mean():.1f}, largest {loss.max():.0f}")
raise SystemExit(0 if size == (400, 400) and len(again) < 0.7 * len(data) and loss.mean() > 1 else 1)
PY

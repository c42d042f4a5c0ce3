#!/usr/bin/env bash
# Pillow 13.0.0 and opencv-python-headless 5.0.0.93, a greyscale PNG of 16 bits, as near-infrared and depth cameras
# write. Expected: every reader scales it to 8 bits when asked for 8-bit colour or grey.
# Seen: OpenCV divides by 256. Pillow's convert("RGB") and convert("L") cut off at 255: all but the darkest 0.4 % of the
# range turns white, silently.
# It matters because the usual loader of face data, Image.open(path).convert("RGB"), makes blank white pictures of the
# infrared half of a cross-spectral set: they are embedded, trained and scored like any other.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import cv2
import numpy as np
from PIL import Image

ramp = np.linspace(0, 65535, 112 * 112).astype(np.uint16).reshape(112, 112)
cv2.imwrite("infrared.png", ramp)
image = Image.open("infrared.png")
read = {
    "OpenCV": cv2.imread("infrared.png"),
    "Pillow RGB": np.asarray(image.convert("RGB")),
    "Pillow L": np.asarray(image.convert("L")),
}
white = {name: float((pixels == 255).mean()) for name, pixels in read.items()}
print("seen:", image.mode, "; share of white values:", {name: f"{share:.1%}" for name, share in white.items()})
scaled = (read["OpenCV"][..., 0] == ramp >> 8).all()
raise SystemExit(0 if scaled and white["OpenCV"] < 0.01 and min(white["Pillow RGB"], white["Pillow L"]) > 0.99 else 1)
PY

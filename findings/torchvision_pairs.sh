#!/usr/bin/env bash
# torchvision 0.29.1 (torch 2.14.1), transforms.v2 on a pair of face tensors, as (image, image) or {"first": ...,
# "second": ...}. Expected: both images are transformed, as they are for a pair of PIL images.
# Seen: of plain tensors only the first is taken for an image; the second is passed through as if it were a label,
# silently: neither normalised nor flipped. Wrapped in tv_tensors.Image, both are transformed.
# It matters because verification and contrastive training hand over pairs: one side is in 0 to 1 and the other in -1 to
# 1, and the model still learns, so that only the accuracy tells.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

face = torch.full((3, 4, 4), 0.75)
normalise = v2.Normalize([0.5] * 3, [0.5] * 3)
plain = [image.mean().item() for image in normalise(face, face.clone())]
wrapped = [image.mean().item() for image in normalise(tv_tensors.Image(face), tv_tensors.Image(face))]
ramp = torch.arange(4.0).expand(3, 4, 4)
flipped = v2.RandomHorizontalFlip(p=1.0)({"first": ramp, "second": ramp.clone(), "label": 7})
turned = {name: flipped[name][0, 0, 0].item() == 3 for name in ("first", "second")}
pictures = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.PILToTensor()])(*[v2.functional.to_pil_image(ramp / 4)] * 2)
both = [image[0, 0, 0].item() > image[0, 0, 3].item() for image in pictures]
print(f"seen: means after Normalize: tensors {plain}, tv_tensors.Image {wrapped}; flipped: {turned}; PIL images: {both}")
ok = plain == [0.5, 0.75] and wrapped == [0.5, 0.5] and turned == {"first": True, "second": False}
raise SystemExit(0 if ok and both == [True, True] else 1)
PY

#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.14.1), BinaryAUROC and BinaryROC on cosine scores. Expected: the area under the curve of
# all pairs, however they are cut into batches for update().
# Seen: a batch with any score outside 0 to 1 is taken for logits and sent through a sigmoid, batch by batch. 4096 pairs
# give 0.842 in one batch and 0.716 in batches of 64, since only those with a negative cosine are squeezed to 0.27 to
# 0.73.
# It matters because cosines are negative now and then: the verification result depends on the batch size, so early
# stopping and comparisons of runs follow chance. Map the scores to 0 to 1 first, as (1 + cosine) / 2.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics.classification import BinaryAUROC

generator = torch.Generator().manual_seed(0)
same = (torch.rand(4096, generator=generator) < 0.5).long()
noise = torch.randn(4096, generator=generator)
cosine = torch.where(same == 1, 0.45 + 0.15 * noise, 0.25 + 0.12 * noise).clamp(-1, 1)


def area(scores, batch):
    metric = BinaryAUROC()
    for part, labels in zip(scores.split(batch), same.split(batch)):
        metric.update(part, labels)
    return metric.compute().item()


plain = {batch: round(area(cosine, batch), 3) for batch in (4096, 256, 64, 16, 4)}
mapped = {batch: round(area((1 + cosine) / 2, batch), 3) for batch in plain}
print("seen: area under the curve by batch size:", plain)
print("seen: with (1 + cosine) / 2:", mapped)
raise SystemExit(0 if plain[4096] - plain[64] > 0.05 and len(set(mapped.values())) == 1 else 1)
PY

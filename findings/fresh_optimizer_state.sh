#!/usr/bin/env bash
# torch 2.14.1, torch.distributed.checkpoint.state_dict.get_optimizer_state_dict, the reader that checkpoints are built
# on, called before the first step. Expected: it reads; training goes on as if it had not been called.
# Seen: an optimizer without state is first made to take a step with gradients and learning rate zero, and keeps what
# that leaves. Adam's count stands at 1, so its first true update is 0.074 instead of 0.1; SGD's momentum starts from
# weight_decay * weight.
# It matters because saving a checkpoint "at step 0" changes the run: two runs with the same seed part at the first
# step, and a head's class weights, with their weight decay, are moved by a momentum that no image gave.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def first_update(read, make):
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 3)
    optimizer = make(head.parameters())
    before = head.weight.detach().clone()
    if read:
        get_optimizer_state_dict(head, optimizer)
    head(torch.randn(8, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()
    return (head.weight.detach() - before)[0]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)


changed = []
for name, make in (("Adam", adam), ("SGD", sgd)):
    untouched, read = first_update(False, make), first_update(True, make)
    changed.append((untouched - read).abs().max().item())
    print(f"seen: {name}: first update {untouched.tolist()}, after reading the state {read.tolist()}")
raise SystemExit(0 if changed[0] > 0.02 and changed[1] > 0.005 else 1)
PY

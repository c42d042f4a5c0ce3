"""IR backbones under the names of face.evoLVe, AdaFace and CVLface: `input_layer`, `body`, `output_layer`.

They are `IResNet`s whose first block has no convolution in its shortcut; face.evoLVe's lack one BatchNorm in each block
besides. So their tensors need other names, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attfc_cuda.backbones.iresnet import STAGE_CHANNELS

MARK = "input_layer.0.weight"
"""The name by which such a network is known, whatever stands before it."""
_BODY = re.compile(r"body\.(\d{1,4})\.(res_layer|shortcut_layer)\.(\d)\.(\w+)")
_ENDS = {
    "input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu",
    "output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features",
}  # fmt: skip
# What the parts of a block's res_layer are, by the places of its two convolutions.
_BLOCKS: dict[tuple[int, ...], tuple[str, ...]] = {
    (1, 4): ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"),
    (1, 3): ("bn1", "conv1", "prelu", "conv2", "bn3"),
}


def prefix_of(state: Mapping[str, Any]) -> str | None:
    """What stands before the names of an IR network in a state_dict; None where there is none."""
    return next((name.removesuffix(MARK) for name in state if name.endswith(MARK)), None)


def as_iresnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """The tensors under the names of `IResNet`, and its options.

    Equals, for images in [-1, 1] of the channel order that it was trained with: the embeddings of the network that the
    tensors are from, before their normalisation.

    Args:
        state: Of an IR network, without a prefix.

    Raises:
        ValueError: Naming a tensor that no IR network has: those with squeeze and excitation, or with bottlenecks.
    """
    convolutions = sorted(
        int(match[3])
        for name, tensor in state.items()
        if (match := _BODY.fullmatch(name)) and (match[1], match[2]) == ("0", "res_layer") and tensor.dim() == 4
    )
    parts = _BLOCKS.get(tuple(convolutions))
    if parts is None:
        raise ValueError(f"blocks with convolutions at the places {convolutions}, which are those of no IR network")
    stage_of = _stages(state, parts.index("conv2"))
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if match := _BODY.fullmatch(name):
            place, index = int(match[3]), int(match[1])
            if match[2] == "shortcut_layer":
                part = f"downsample.{place}"
            elif place < len(parts):
                part = parts[place]
            else:
                raise ValueError(f"{name}, which no IR network has (nor has ours squeeze and excitation)")
            renamed[f"{stage_of[index]}.{part}.{kind}"] = tensor
        elif module in _ENDS:
            renamed[f"{_ENDS[module]}.{kind}"] = tensor
        else:
            raise ValueError(f"{name[:80]}, which no IR network has")
    mean = renamed.get("features.running_mean")
    if mean is not None:  # AdaFace's last BatchNorm has neither scale nor bias
        renamed.setdefault("features.weight", torch.ones_like(mean))
        renamed.setdefault("features.bias", torch.zeros_like(mean))
    for name in [name for name in renamed if name.endswith(".running_mean")]:  # old files have no counters
        renamed.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    options = {"pool_shortcut": True} if "body.0.shortcut_layer.0.weight" not in state else {}
    return renamed, options if "bn2" in parts else {**options, "middle_norm": False}


def _stages(state: Mapping[str, Tensor], place: int) -> dict[int, str]:
    """Stage and place in it, as `layer2.0`, of each block, from the channels of its second convolution."""
    seen = dict.fromkeys(STAGE_CHANNELS, 0)
    stages = {}
    for index in sorted({int(match[1]) for name in state if (match := _BODY.fullmatch(name))}):
        weight = state.get(f"body.{index}.res_layer.{place}.weight")
        channels = None if weight is None or weight.dim() != 4 else len(weight)
        if channels not in seen:
            raise ValueError(
                f"{channels or 'no'} channels in body.{index}, of which a stage has one of {STAGE_CHANNELS}"
            )
        stages[index] = f"layer{STAGE_CHANNELS.index(channels) + 1}.{seen[channels]}"
        seen[channels] += 1
    return stages

"""InsightFace's checkpoints: backbones (`model.pt`, `backbone.pth`) and class centres (`softmax_fc_gpu_*.pt`).

Read with `weights_only=True`: a file that would run code is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda._tensors_from_files import PREFIXES, behind, network_in, network_state, read_tensors
from attfc_cuda.backbones import IResNet
from attfc_cuda.backbones.iresnet import STAGE_BLOCKS, STAGE_CHANNELS
from attfc_cuda.compat import ir_layout
from attfc_cuda.heads import FullyConnected

CENTER_FILES = ("softmax_fc_gpu_*.pt", "checkpoint_gpu_*.pt", "rank_*_softmax_weight.pt")
_STRIDE = 16  # pixels of the image to one of the last feature map


def load_backbone(path: str | os.PathLike, *, bgr: bool = False) -> IResNet:
    """The IResNet of a checkpoint of InsightFace, MagFace, AdaFace, CVLface or face.evoLVe, on the CPU in eval mode,
    ready for training or verification.

    Equals torch.load and load_state_dict into `backbones.build("iresnet50", ...)`: parameters have the same names. The
    "module." of DistributedDataParallel and the "_orig_mod." of torch.compile in them are dropped.

    Args:
        path: a file with the network's state_dict (`model.pt`, `backbone.pth`), or the whole state that
            `save_all_states` writes (`checkpoint_gpu_0.pt`). Depth, embedding size and image size follow from the
            shapes. The network may lie under "state_dict" or "model", its names behind "features.module.", "model.",
            "net." and the like, and be those of face.evoLVe's IR networks (`compat.ir_layout`).
        bgr: The network takes blue first, as AdaFace's own do; the channels of its first convolution are then swapped,
            so that it takes RGB as all networks here. Nothing in a file says which it is.

    Raises:
        ValueError: naming the file: not loadable, another network (MobileFaceNet, ViT, IR with squeeze and excitation),
            keys missing, tensors that are sparse, without numbers or larger than what is stored of them, NaN in a
            weight.
    """
    path = Path(path)
    options: dict[str, bool] = {}
    try:
        state = network_state(network_in(read_tensors(path, "load_backbone")))
        if (prefix := ir_layout.prefix_of(state)) is not None:
            state, options = ir_layout.as_iresnet(behind(prefix, state))
        else:
            state = behind(next((p for p in PREFIXES if f"{p}conv1.weight" in state), ""), state)
    except ValueError as cause:
        raise error("load_backbone", "path", "hold a state_dict of tensors", f"{cause}, in {path}") from cause
    depth, embedding_dim, image_size = _architecture(state, path)
    backbone = IResNet(depth, embedding_dim, image_size, **options)
    if bgr and state["conv1.weight"].dim() == 4:
        state["conv1.weight"] = state["conv1.weight"].flip(1)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as cause:
        got = f"{path} ({' '.join(str(cause).split())[:300]})"
        raise error("load_backbone", "path", f"hold an IResNet of depth {depth}", got) from cause
    return backbone.eval()


def load_centers(head: FullyConnected, paths: str | os.PathLike | Sequence[str | os.PathLike]) -> None:
    """Put the class centres that InsightFace trained into `head.centers` (with shards: this process's part of them).

    Args:
        head: `FullyConnected`, `PartialFC` or `PartialFC_V2`, of as many classes as the files hold together.
        paths: the files of all ranks, `softmax_fc_gpu_0.pt`, `softmax_fc_gpu_1.pt`, ..., or of `checkpoint_gpu_*.pt` or
            `rank_*_softmax_weight.pt`; or the folder that holds them. They are put in order by the rank in their names,
            whatever the order given. Each file is mapped, not read whole: memory for `head.centers` is all it takes.

    Raises:
        ValueError: naming the file or the size that does not fit; nothing has been written then.
    """
    files = _by_rank(paths)
    parts = [_weight(path) for path in files]
    rows, dims = sum(len(part) for part in parts), {part.shape[1] for part in parts}
    if (rows, dims) != (head.num_classes, {head.dim}):
        named = f"{files[0]}" if len(files) == 1 else f"{len(files)} files, {files[0]} to {files[-1].name}"
        got = f"{rows} of {' and '.join(map(str, sorted(dims)))} numbers in {named}"
        rule = f"hold the head's {head.num_classes} centres of {head.dim} numbers"
        raise error("load_centers", "paths", rule, got, "give the files of all ranks, and the head the same sizes")
    first = 0
    with torch.no_grad():
        for part in parts:
            start, end = max(first, head.first), min(first + len(part), head.last)
            if start < end:
                head.centers[start - head.first : end - head.first].copy_(part[start - first : end - first])
            first += len(part)


def _architecture(state: Mapping[str, Tensor], path: Path) -> tuple[int, int, int]:
    """(depth, embedding_dim, image_size) from the names and shapes."""
    blocks = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    depths = {count: depth for depth, count in STAGE_BLOCKS.items()}
    if blocks not in depths or "fc.weight" not in state or state["fc.weight"].dim() != 2:
        known = ", ".join(f"{depth} ({count})" for depth, count in STAGE_BLOCKS.items())
        got = f"stages of {blocks} blocks in {path}"
        raise error("load_backbone", "path", f"hold an IResNet of depth (blocks) {known}", got)
    embedding_dim, features = state["fc.weight"].shape
    side = math.isqrt(features // STAGE_CHANNELS[-1])
    if embedding_dim < 1 or side < 1 or features != STAGE_CHANNELS[-1] * side**2:
        rule = f"hold an fc.weight [D, {STAGE_CHANNELS[-1]} S^2] of a square last feature map"
        raise error("load_backbone", "path", rule, f"{[embedding_dim, features]} in {path}")
    return depths[blocks], embedding_dim, side * _STRIDE


def _by_rank(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """The files in order of the rank in their names. Raises ValueError unless every rank from 0 on is there once."""
    given = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    if len(given) == 1 and given[0].is_dir():
        found = (sorted(given[0].glob(pattern)) for pattern in CENTER_FILES)
        given = next(filter(None, found), [])
    if not given:
        raise error("load_centers", "paths", f"name or hold {' or '.join(CENTER_FILES)}", repr(paths))
    ranked = []
    for path in given:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers and len(given) > 1:
            raise error("load_centers", "paths", "carry the rank in each file name", path)
        ranked.append((int(numbers[-1]) if numbers else 0, path))
    ranks = sorted(rank for rank, _ in ranked)
    if len(given) > 1 and ranks != list(range(len(given))):
        raise error("load_centers", "paths", f"have ranks 0 to {len(given) - 1}", ranks)
    return [path for _, path in sorted(ranked)]


def _weight(path: Path) -> Tensor:
    """The [n, D] centres in one file, of any of InsightFace's layouts."""
    state = read_tensors(path, "load_centers")
    if isinstance(state, Mapping):
        state = state.get("state_dict_softmax_fc", state)
        state = state.get("weight") if isinstance(state, Mapping) else state
    if not isinstance(state, Tensor) or state.dim() != 2 or not state.is_floating_point():
        raise error("load_centers", "paths", 'hold a floating "weight" [n, D] each', path)
    return state

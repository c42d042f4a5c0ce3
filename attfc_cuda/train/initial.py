"""Fine-tuning: the weights that a network starts from, and which of its parameters stay as they are.

A file is read by `torch.load(weights_only=True)` or safetensors, and its tensors are held against the network's names
and shapes before any data are read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda._tensors_from_files import PREFIXES, behind, network_in, network_state, read_tensors
from attfc_cuda.compat import ir_layout
from attfc_cuda.evaluation.build import split_list
from attfc_cuda.train import checkpoint
from attfc_cuda.train.backbone import build_backbone
from attfc_cuda.train.config import TrainConfig

_SHOWN = 6


class InitialWeights(NamedTuple):
    """Tensors that fit the network.

    Attributes:
        state: by the network's names.
        anew: names that keep their fresh values, as their size depends on the embedding's.
        left_out: names in the file beside the network, such as a head's.
    """

    state: dict[str, Tensor]
    anew: list[str]
    left_out: list[str]

    def apply(self, backbone: nn.Module) -> None:
        """Put the weights into the network."""
        backbone.load_state_dict(self.state, strict=False)

    def describe(self, path: Path) -> str:
        """A line for the start-up report."""
        text = f"initial       {len(self.state)} tensors of {path}"
        for what, names in (("started anew", self.anew), ("left out of the file", self.left_out)):
            text += f"; {what}: {_some(names)}" if names else ""
        return text


def read_initial(config: TrainConfig) -> InitialWeights | None:
    """The weights in `config.model.init` for the network of the config; None where it names none.

    Raises:
        ValueError: naming the file and what of it does not fit: missing and unexpected names, shapes, the size of the
            embedding without `new_embedding`; and as `read_tensors` does.
        CheckpointError: for a run folder without a checkpoint that loads.
    """
    path = config.model.init
    if path is None:
        return None
    expected = _shapes(config, config.model.embedding_dim)
    try:
        found = network_state(network_in(_read(path)))
        prefix = ir_layout.prefix_of(found)
        if prefix is not None:
            state, options = ir_layout.as_iresnet(behind(prefix, found))
        else:
            prefix = max(PREFIXES, key=lambda p: sum(f"{p}{name}" in found for name in expected))
            state, options = behind(prefix, found), {}
    except checkpoint.CheckpointError:
        raise
    except ValueError as cause:
        raise error("train", "init", "hold a network's tensors by name", f"{cause}, in {path}") from cause
    left_out = [name for name in found if not name.startswith(prefix)]
    # Files of before torch 0.4.1 lack BatchNorm's counters, which are the only tensors without dimensions.
    missing = [name for name, shape in expected.items() if name not in state and len(shape)]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        got = f"{path}: missing {_some(missing) or 'none'}; unexpected {_some(unexpected) or 'none'}"
        remedy = "give the --backbone, --backbone-options and --image-size that the weights were trained with"
        if options:
            remedy += f": its options are {','.join(f'{name}={value}' for name, value in options.items())}"
        raise error("train", "init", f"hold the tensors of {config.model.backbone}", got, remedy)
    other = {name for name in state if state[name].shape != expected[name]}
    if other:
        _require_only_the_embedding(config, path, state, expected, other)
    kept = {name: tensor for name, tensor in state.items() if name not in other}
    return InitialWeights(kept, sorted(other), left_out)


def freeze(backbone: nn.Module, patterns: str) -> int:
    """Take the parameters whose names match out of training; their BatchNorm keeps its running statistics.

    Args:
        backbone: The network.
        patterns: Shell patterns separated by commas: `conv1.*,bn1.*,layer[12].*`.

    Returns:
        The number of parameters (tensors) that are frozen.

    Raises:
        ValueError: For a pattern without a match, and where nothing is left to train.
    """
    names = [name for name, _ in backbone.named_parameters()]
    frozen: set[str] = set()
    for pattern in split_list(patterns):
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise error("train", "freeze", f"match parameters, such as {_some(names)}", repr(pattern))
        frozen.update(matches)
    if frozen and len(frozen) == len(names):
        raise error("train", "freeze", "leave parameters of the backbone to train", repr(patterns))
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for module in backbone.modules():
        own = list(module.parameters(recurse=False))
        if type(module) in _FROZEN and own and not any(p.requires_grad for p in own):
            module.__class__ = _FROZEN[type(module)]
            module.train()
    return len(frozen)


def rate_factors(backbone: nn.Module, whole: float, layer_decay: float) -> dict[int, float]:
    """The factor of the learning rate of each parameter, by its `id`.

    Equals ``whole * layer_decay ** (L - 1 - l)`` for layer l of L. A layer is a block with a number in its name
    (`layer1.0`), or a module beside the blocks, in the order of the network.

    Args:
        backbone: The network.
        whole: Of all of it.
        layer_decay: From a layer to the one before it.
    """
    layers: dict[str, int] = {}
    place = {id(p): layers.setdefault(_layer_of(name), len(layers)) for name, p in backbone.named_parameters()}
    return {key: whole * layer_decay ** (len(layers) - 1 - layer) for key, layer in place.items()}


class _KeepsStatistics:
    """Mixed into a BatchNorm whose parameters are frozen: in eval mode, whatever mode the network is in."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


class _FrozenBatchNorm1d(_KeepsStatistics, nn.BatchNorm1d):
    pass


class _FrozenBatchNorm2d(_KeepsStatistics, nn.BatchNorm2d):
    pass


class _FrozenSyncBatchNorm(_KeepsStatistics, nn.SyncBatchNorm):
    pass


_FROZEN: dict[type, type] = {
    nn.BatchNorm1d: _FrozenBatchNorm1d,
    nn.BatchNorm2d: _FrozenBatchNorm2d,
    nn.SyncBatchNorm: _FrozenSyncBatchNorm,
}


def _layer_of(name: str) -> str:
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[:1] if number is None else parts[: number + 1])


def _read(path: Path) -> Any:
    if path.is_dir():
        return checkpoint.open_any(path)
    if path.suffix == ".safetensors":
        from attfc_cuda.export import read_safetensors

        return read_safetensors(path)[0]
    return read_tensors(path, "train", "init")


def _shapes(config: TrainConfig, embedding_dim: int) -> dict[str, torch.Size]:
    """The shapes of the config's network with embeddings of that many numbers; takes no memory."""
    sizes = TrainConfig.from_dict(config.to_dict())
    sizes.model.embedding_dim = embedding_dim
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_backbone(sizes).state_dict().items()}


def _require_only_the_embedding(
    config: TrainConfig, path: Path, state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], other: set[str]
) -> None:
    """Demand that the tensors of another shape have it for another size of the embedding, and that the user says so."""
    dim = config.model.embedding_dim
    larger = _shapes(config, dim + 1)
    by_size = {name for name in expected if expected[name] != larger[name]}
    if not other <= by_size:
        name = min(other - by_size)
        got = f"{list(state[name].shape)} in {path}"
        remedy = "give the --backbone, --backbone-options and --image-size that the weights were trained with"
        raise error("train", "init", f"hold {name} of shape {list(expected[name])}", got, remedy)
    name = min(other)
    axis = next(a for a, (n, m) in enumerate(zip(expected[name], larger[name], strict=True)) if n != m)
    theirs = state[name].shape[axis] if state[name].dim() > axis else "another number"
    if not config.model.new_embedding:
        remedy = f"--embedding-dim {theirs}, or --new-embedding to start {_some(sorted(other))} anew"
        raise error("train", "embedding_dim", f"be that of {path}, {theirs}", dim, remedy)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:80] for name in names[:_SHOWN]) + more

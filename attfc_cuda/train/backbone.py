"""The network of a run: freshly initialised from its config, or as a checkpoint has it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attfc_cuda import backbones
from attfc_cuda._check import error
from attfc_cuda._tensors_from_files import network_state, require_fit
from attfc_cuda.backbones.options_from_files import options_from_file
from attfc_cuda.train import checkpoint
from attfc_cuda.train.config import TrainConfig, parse_options


def build_backbone(config: TrainConfig, source: Path | None = None) -> nn.Module:
    """The network of the config, freshly initialised from torch's global generator.

    Args:
        config: Of the run.
        source: The file that the config is from, where it is not the user's own: it may set some options only.

    Raises:
        ValueError: For an unknown name, an option that the network does not have or that no file may set, or sizes it
            cannot take.
    """
    return _build(config, _options(config, source))


def _options(config: TrainConfig, source: Path | None) -> dict[str, Any]:
    options = parse_options(config.model.backbone_options, "backbone_options")
    return options if source is None else options_from_file(config.model.backbone, options, source)


def _build(config: TrainConfig, options: dict[str, Any]) -> nn.Module:
    sizes = {"embedding_dim": config.model.embedding_dim, "image_size": config.dataset.image_size}
    try:
        return backbones.build(config.model.backbone, **sizes, **options)
    except TypeError as cause:
        rule = f"hold arguments of {config.model.backbone}"
        got = f"{config.model.backbone_options!r} ({cause})"
        raise error("train", "backbone_options", rule, got) from cause


def load_backbone(path: Path) -> tuple[nn.Module, str]:
    """The trained network of a checkpoint.

    Args:
        path: A checkpoint file, or a run folder, of which the newest checkpoint that loads is taken.

    Returns:
        The network, on the CPU in eval mode, and its name.

    Raises:
        CheckpointError: Naming a file that cannot be used.
    """
    state = checkpoint.open_any(path, mapped=True)
    try:
        config = TrainConfig.from_dict(state["config"])
        make = functools.partial(_build, config, _options(config, path))
        tensors = network_state(state["backbone"])
        if not config.model.backbone.startswith(backbones.TIMM_PREFIX):  # not all of those build without memory
            require_fit(make, tensors)
        backbone = make()
        backbone.load_state_dict(tensors)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as cause:
        got = f"({' '.join(str(cause).split())[:300]})"
        raise checkpoint.CheckpointError(
            f"checkpoint: {path} must hold a network of `backbones.build` and its tensors, got {got}"
        ) from cause
    # channels_last is the layout convolution libraries compute in.
    return backbone.eval().to(memory_format=torch.channels_last), config.model.backbone

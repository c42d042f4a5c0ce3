"""The momentum encoder: the slow copy of the backbone that embeds the gallery images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attfc_cuda._check import error

BUFFERS = ("own", "copy")
DEFAULT_MOMENTUM = 0.9
"""Of `MomentumEncoder` and of `attfc train`: a lag of ten steps. Our choice, as is measured in docs/learning.md."""


class MomentumEncoder(nn.Module):
    """A deep copy of `module` whose parameters follow it as an exponential moving average; no gradient ever.

    PyTorch equivalent: ``torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(momentum))``,
    without its counter and with a choice about the buffers.

    The module stays in the mode it is put in, train or eval, like any nn.Module; keep it in train mode while training,
    even though it learns nothing. BatchNorm then normalises gallery images by their batch, as it does the probes. In
    eval mode it would use running averages, collected under weights that have since moved: probes and class centres
    would live in two differently normalised spaces, the network would learn that difference instead of faces, and
    training collapses (seen at small scale: verification at chance).

    Args:
        module: the probe encoder, not wrapped: copy first, then wrap it in DistributedDataParallel or torch.compile, or
            shard it by FSDP's fully_shard; `update` accepts what comes out. Its parameters must be float32 or float64:
            in 16 bits a step of (1 - momentum) times the difference is rounded away, and the copy would stand still.
        momentum: in [0, 1], the weight of the past. An attribute; assign to it to follow a schedule. The copy lags by
            about 1 / (1 - momentum) steps. While the learning rate is high AdaSin loses ground behind a lag of 50
            steps and goes astray from 0.99 on (docs/learning.md); ArcFace only learns more slowly.
        buffers: `"own"`: buffers (the running statistics of BatchNorm) are this module's own, moved by its own forward
            passes; `"copy"`: `update` overwrites them with those of the source.

    Gradient:
        None, to parameters or to inputs: `forward(*args, **kwargs)` is the module's under no_grad, with its output
        shapes and dtypes.

    Source:
        AttFC, arXiv 2503.06839 (momentum 0.999 in its public code), after MoCo, arXiv 1911.05722, equation 2. The
        default and the choice about buffers are ours.

    Raises:
        ValueError: for momentum or buffers out of range.
        TypeError: for 16-bit parameters.
    """

    def __init__(self, module: nn.Module, momentum: float = DEFAULT_MOMENTUM, buffers: str = "own") -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise error("MomentumEncoder", "momentum", "lie in [0, 1]", momentum)
        if buffers not in BUFFERS:
            raise error("MomentumEncoder", "buffers", f"be one of {BUFFERS}", repr(buffers))
        _require_wide_parameters("MomentumEncoder", module)
        self.momentum, self.buffer_mode = momentum, buffers
        # A tensor that a forward pass has left on the module (a cached output, weight_norm's weight) cannot be copied
        # together with its graph.
        left = {id(tensor): tensor.detach().clone() for tensor in _tensors_with_graph(module)}
        self.module = copy.deepcopy(module, left).requires_grad_(False)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffer_mode!r}"

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step: parameters <- momentum * parameters + (1 - momentum) * module's; call it after the optimizer's.

        Neither module's train or eval mode changes, and `module` is only read.

        Args:
            module: the source, wrapped or not. Where it is sharded, every process of its mesh calls this.

        Raises:
            ValueError: when `module`'s parameters (or, with buffers="copy", its buffers) are not those of the module
                copied.
            TypeError: when the copy has been cast to 16 bits.
        """
        _require_wide_parameters("MomentumEncoder.update", self.module)
        for own, source in _paired(self.module.parameters(), module.parameters(), "parameters"):
            torch._foreach_lerp_(own, source, 1.0 - self.momentum)
        if self.buffer_mode == "copy":
            for own, source in _paired(self.module.buffers(), module.buffers(), "buffers"):
                torch._foreach_copy_(own, source)


def _paired(own: Iterable[Tensor], source: Iterable[Tensor], what: str) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Lists of tensors of the copy and, in the same order, of the source, after a check that they can be paired one to
    one: all in one pair of lists where they are plain tensors, else each in its own."""
    own, source = list(own), list(source)
    shapes, got = [list(t.shape) for t in own], [list(t.shape) for t in source]
    if shapes != got:
        name = "MomentumEncoder.update"
        if len(shapes) != len(got):
            raise error(name, "module", f"have the {len(shapes)} {what} of the module that was copied", len(got))
        index = next(i for i, pair in enumerate(zip(shapes, got, strict=True)) if pair[0] != pair[1])
        raise error(name, "module", f"have shape {shapes[index]} as number {index} of its {what}", got[index])
    if any(isinstance(tensor, DTensor) for tensor in (*own, *source)):
        for pair in zip(own, source, strict=True):
            mine, theirs = _beside(*pair)
            yield [mine], [theirs]
    elif own:
        yield own, [theirs.to(mine.dtype) for mine, theirs in zip(own, source, strict=True)]


def _beside(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of the copy and the source's, as plain tensors of the same rows and dtype. FSDP shards the source after
    it was copied: every process of its mesh then gathers it."""
    if isinstance(theirs, DTensor):
        if isinstance(mine, DTensor) and (mine.device_mesh, mine.placements) == (theirs.device_mesh, theirs.placements):
            theirs = theirs.to_local()
            mine = mine.to_local()
        else:
            theirs = theirs.full_tensor()
    if isinstance(mine, DTensor):
        rule = "be sharded as the copy is"
        raise error("MomentumEncoder.update", "module", rule, "another placement", "copy first, then shard the source")
    return mine, theirs.to(mine.dtype)


def _require_wide_parameters(function: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            remedy = "keep the parameters in float32 and run the encoder under autocast"
            got = f"{parameter.dtype} in {name}"
            raise error(function, "module", "have float32 parameters", got, remedy, kind=TypeError)


def _tensors_with_graph(module: nn.Module) -> Iterator[Tensor]:
    """The tensors among the attributes of a module and its children that autograd has computed."""
    seen, waiting = set(), [vars(child) for child in module.modules()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)

"""The momentum encoder: the slow copy of the backbone that embeds the gallery images."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attfc_cuda._check import error

BUFFERS = ("own", "copy")


class MomentumEncoder(nn.Module):
    """A deep copy of `module` whose parameters follow it as an exponential moving average; no gradient ever.

    PyTorch equivalent: ``torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(momentum))``,
    without its counter and with a choice about the buffers.

    module: the probe encoder, not wrapped (copy first, then wrap in DistributedDataParallel or torch.compile; `update`
        accepts the wrapped module). Its parameters must be float32 or float64: in 16 bits a step of (1 - momentum)
        times the difference is rounded away and the copy would stand still.
    momentum: in [0, 1], the weight of the past. An attribute; assign to it to follow a schedule. 0.999 suits some 10^5
        steps: the copy lags by about 1 / (1 - momentum) steps, which must stay a small part of the run. Short runs
        want less (0.99 for 10^4).
    buffers: `"own"`: buffers (the running statistics of BatchNorm) are this module's own, moved by its own forward
        passes; `"copy"`: `update` overwrites them with those of the source.

    Train and eval mode: the module stays in the mode it is put in, like any nn.Module; keep it in train mode while
    training, even though it learns nothing. BatchNorm then normalises gallery images by their batch, as it does the
    probes. In eval mode it would use running averages, collected under weights that have since moved: probes and class
    centres would live in two differently normalised spaces, the network learns that difference instead of faces, and
    training collapses (seen at small scale: verification at chance).

    forward(*args, **kwargs): `module`'s, under no_grad. Output shapes and dtypes are the module's.
    Gradient: none, to parameters or to inputs.
    Source: AttFC, arXiv 2503.06839 (momentum 0.999 in its public code), after MoCo, arXiv 1911.05722, equation 2. The
        choice about buffers is ours.
    Raises: ValueError for momentum or buffers out of range, TypeError for 16-bit parameters.
    """

    def __init__(self, module: nn.Module, momentum: float = 0.999, buffers: str = "own") -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise error("MomentumEncoder", "momentum", "lie in [0, 1]", momentum)
        if buffers not in BUFFERS:
            raise error("MomentumEncoder", "buffers", f"be one of {BUFFERS}", repr(buffers))
        for name, parameter in module.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                remedy = "keep the parameters in float32 and run the encoder under autocast"
                got = f"{parameter.dtype} in {name}"
                raise error("MomentumEncoder", "module", "have float32 parameters", got, remedy, kind=TypeError)
        self.momentum, self.buffer_mode = momentum, buffers
        self.module = copy.deepcopy(module).requires_grad_(False)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffer_mode!r}"

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step: parameters <- momentum * parameters + (1 - momentum) * module's; call it after the optimizer's.

        Neither module's train or eval mode changes, and `module` is only read.
        Raises: ValueError when `module`'s parameters (or, with buffers="copy", its buffers) are not those of the
            module copied.
        """
        own, source = _paired(self.module.parameters(), module.parameters(), "parameters")
        if own:
            torch._foreach_lerp_(own, source, 1.0 - self.momentum)
        if self.buffer_mode == "copy":
            own, source = _paired(self.module.buffers(), module.buffers(), "buffers")
            if own:
                torch._foreach_copy_(own, source)


def _paired(own: Any, source: Any, what: str) -> tuple[list[Tensor], list[Tensor]]:
    """Both as lists, in the modules' order, after a check that they can be paired one to one."""
    own, source = list(own), list(source)
    shapes, got = [list(t.shape) for t in own], [list(t.shape) for t in source]
    if shapes != got:
        name = "MomentumEncoder.update"
        if len(shapes) != len(got):
            raise error(name, "module", f"have the {len(shapes)} {what} of the module that was copied", len(got))
        index = next(i for i, pair in enumerate(zip(shapes, got, strict=True)) if pair[0] != pair[1])
        raise error(name, "module", f"have shape {shapes[index]} as number {index} of its {what}", got[index])
    return own, source

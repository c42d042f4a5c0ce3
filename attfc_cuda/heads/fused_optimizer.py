"""The optimizer of a head's class centres, run inside the backward pass, a block of rows at a time.

A block's gradient is used as soon as it is made, so no gradient of all centres ever exists: a head needs its centres
and the optimizer's state, whatever the batch or the sample rate. Rows that are not sampled are not touched: no decay,
no momentum. The update itself is torch's own (`torch.optim.sgd.sgd`, `torch.optim.adamw.adamw`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from attfc_cuda._check import error

KINDS = ("sgd", "adamw")
_STATES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class FusedOptimizer(torch.optim.Optimizer):
    """Updates `weight` [N, D] from inside the backward pass; see `FullyConnected.fuse_optimizer`, which makes one.

    To the outside an optimizer: `param_groups` carries lr, momentum and weight_decay (learning-rate schedules work on
    it), `state_dict` saves and restores it. `step` does nothing: by then the centres have moved. Call it or not (a
    schedule warns where it never was), but not by a GradScaler's `step`, which looks for gradients that are not there.
    A copy of the head takes the optimizer along, with the same GradScaler.
    """

    def __init__(
        self,
        weight: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        kind: str,
        betas: tuple[float, float],
        eps: float,
        grad_scaler: torch.amp.GradScaler | None,
    ) -> None:
        name = "fuse_optimizer"
        if kind not in KINDS:
            raise error(name, "kind", f"be one of {KINDS}", repr(kind))
        for argument, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}.items():
            if not value >= 0:
                raise error(name, argument, "be at least 0", value)
        if not all(0 <= beta < 1 for beta in betas):
            raise error(name, "betas", "lie in [0, 1)", betas)
        super().__init__(
            [weight], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        )
        self.kind, self.grad_scaler = kind, grad_scaler

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kind": self.kind, "grad_scaler": self.grad_scaler}

    def __deepcopy__(self, memo: dict) -> FusedOptimizer:
        memo.setdefault(id(self.grad_scaler), self.grad_scaler)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    @property
    def weight(self) -> Tensor:
        """The parameter that is updated."""
        return self.param_groups[0]["params"][0]

    @property
    def split_states(self) -> tuple[str, ...]:
        """What it keeps for each row of the centres, by name; see `distributed.split_state.SplitOptimizer`."""
        return _STATES[self.kind]

    def make_state(self) -> dict[str, Tensor]:
        """The state of the centres. What is not there yet is made: zeros of the centres' present dtype and device."""
        weight = self.weight
        state = self.state[weight]
        if self.kind == "adamw":
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=weight.device))
        if self.kind == "adamw" or self.param_groups[0]["momentum"] > 0:
            for key in self.split_states:
                if key not in state:
                    state[key] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's. Raises ValueError for the state of another kind of optimizer."""
        known = {*self.split_states, *(("step",) if self.kind == "adamw" else ())}
        given = {name for state in state_dict["state"].values() for name in state}
        if not given <= known:
            rule = f"be of kind {self.kind!r} ({', '.join(sorted(known))})"
            raise error("FusedOptimizer.load_state_dict", "state_dict", rule, ", ".join(sorted(given)))
        super().load_state_dict(state_dict)
        state = self.state[self.weight]
        if "step" in state:  # which torch leaves where it was saved, and the update needs beside the centres
            state["step"] = state["step"].to(self.weight.device)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing: the backward pass has made the step."""
        return None if closure is None else closure()

    @torch.no_grad()
    def apply(self, first: int, gradient: Tensor, rows: Tensor | None = None) -> None:
        """One step for the centres `rows[first : first + n]` (None: those very numbers) from their gradient [n, D].

        A block whose gradient is not finite (a loss scale too large) is left as it is, and a step in which no block
        moved is not counted.
        """
        weight, state, finite = self.weight, self.make_state(), gradient.isfinite().all()
        if self.kind == "adamw" and first == 0:
            state["step"] += 1
            self._moved = torch.zeros_like(finite)
        place = slice(first, first + len(gradient)) if rows is None else rows[first : first + len(gradient)]
        buffers = [weight.detach(), *(state[key] for key in self.split_states if key in state)]
        # A slice is a view and changes in place; chosen rows are a copy that goes back.
        parts = [buffer[place] for buffer in buffers]
        self._update(parts[0], gradient.to(weight.dtype), parts[1:], finite)
        if rows is not None:
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.index_copy_(0, place, part)
        if self.kind == "adamw":
            self._moved |= finite
            if first + len(gradient) == len(weight if rows is None else rows):
                state["step"] -= (~self._moved).float()
        # The fused updates do not tell autograd: a forward from before this step must not be differentiated after it.
        torch.autograd.graph.increment_version(weight)

    def _update(self, weight: Tensor, gradient: Tensor, parts: list[Tensor], finite: Tensor) -> None:
        group = self.param_groups[0]
        scale = None if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=weight.device))
        common = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "maximize": False,
            "fused": True,
            "grad_scale": scale,
            "found_inf": (~finite).float(),
        }
        if self.kind == "sgd":
            momentum_buffer = parts[0] if parts else None
            sgd(
                [weight], [gradient], [momentum_buffer],
                momentum=group["momentum"] if parts else 0.0, dampening=0.0, nesterov=False, **common,
            )  # fmt: skip
        else:
            # The update counts its own steps up; all blocks of a backward pass are one step.
            step = self.state[self.weight]["step"] - 1
            beta1, beta2 = group["betas"]
            adamw(
                [weight], [gradient], [parts[0]], [parts[1]], [], [step],
                beta1=beta1, beta2=beta2, eps=group["eps"], amsgrad=False, **common,
            )  # fmt: skip

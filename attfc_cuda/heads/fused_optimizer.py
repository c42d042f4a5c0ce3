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
_SETTINGS = {"sgd": ("lr", "momentum", "weight_decay"), "adamw": ("lr", "betas", "eps", "weight_decay")}
_STATES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class FusedOptimizer(torch.optim.Optimizer):
    """Updates `weight` [N, D] from inside the backward pass; `FullyConnected.fuse_optimizer` makes one.

    From the outside it is an optimizer: `param_groups` carries the settings of its kind (learning-rate schedules work
    on it) and `state_dict` saves and restores it. A copy of the head takes the optimizer along, with the same
    GradScaler.

    Only the backward pass of a forward in train mode moves the centres, and only one that reaches them: not
    `torch.autograd.grad(loss, embeddings)`, not `loss.backward(inputs=[embeddings])`. Each such pass is a step, so that
    gradients cannot be accumulated: a loss whose forward came before the last step is refused, and so is a second
    backward pass between two calls of `step`.

    `step` itself does nothing: by then the centres have moved. Call it after each backward pass or never (a schedule
    warns where it never was), but not through a GradScaler's `step`, which looks for gradients that are not there.

    Args:
        weight: the parameter that is updated.
        kind: "sgd" or "adamw".
        settings: lr, weight_decay, and momentum for "sgd", betas and eps for "adamw".
        grad_scaler: the GradScaler that scales the loss, if there is one.
        max_row_norm: the largest norm of one centre's gradient; None: any.
    """

    # Of this process's own course, so not in a state_dict: the steps made, whether anyone calls `step`, and whether a
    # backward pass has moved the centres since.
    steps, _step_is_called, _moved_since_step = 0, False, False

    def __init__(
        self,
        weight: Tensor,
        kind: str,
        settings: dict[str, Any],
        grad_scaler: torch.amp.GradScaler | None,
        max_row_norm: float | None,
    ) -> None:
        name = "fuse_optimizer"
        if not isinstance(weight, torch.nn.Parameter):
            rule, remedy = "be the head's parameter", "remove the parametrization of centers first"
            raise error(name, "centers", rule, "a tensor that is computed from others", remedy)
        if kind not in KINDS:
            raise error(name, "kind", f"be one of {KINDS}", repr(kind))
        for argument in ("lr", "momentum", "weight_decay", "eps"):
            if not settings[argument] >= 0:
                raise error(name, argument, "be at least 0", settings[argument])
        if not all(0 <= beta < 1 for beta in settings["betas"]):
            raise error(name, "betas", "lie in [0, 1)", settings["betas"])
        if max_row_norm is not None and not max_row_norm > 0:
            raise error(name, "max_row_norm", "be above 0", max_row_norm)
        # A schedule such as OneCycleLR takes what it finds here for what the update uses.
        super().__init__([weight], {setting: settings[setting] for setting in _SETTINGS[kind]})
        self.kind, self.grad_scaler, self.max_row_norm = kind, grad_scaler, max_row_norm

    def __getstate__(self) -> dict[str, Any]:
        own = {"kind": self.kind, "grad_scaler": self.grad_scaler, "max_row_norm": self.max_row_norm}
        return {**super().__getstate__(), **own}

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
        """As torch's.

        Raises:
            ValueError: for the state of another kind of optimizer.
        """
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
        loss = None if closure is None else closure()
        self._step_is_called, self._moved_since_step = True, False
        return loss

    def require_state_beside_weight(self, head: str) -> None:
        """Raise a ValueError for `head` where it was cast or moved after the first step, and the state was not."""
        for name in self.split_states:
            value = self.state.get(self.weight, {}).get(name)
            if value is not None and (value.dtype, value.device) != (self.weight.dtype, self.weight.device):
                rule = f"stay {value.dtype} on {value.device} after the first fused step"
                got = f"{self.weight.dtype} on {self.weight.device}"
                raise error(head, "centers", rule, got, "cast or move the head before, or call fuse_optimizer again")

    def require_latest(self, steps: int) -> None:
        """Raise a RuntimeError unless the centres are those that a forward pass met after `steps` steps."""
        if self.steps != steps:
            rule = "run before the fused optimizer's next step"
            got = "that of an earlier forward (gradient accumulation?)"
            remedy = "make one batch of them, or leave fuse_optimizer out"
            raise error("FusedOptimizer", "backward", rule, got, remedy, RuntimeError)

    def _begin(self) -> None:
        """The start of a step, before anything moves."""
        if self._step_is_called and self._moved_since_step:
            rule, got = "run once between two calls of step", "a second one (gradient accumulation?)"
            remedy = "make one batch of them, or leave fuse_optimizer out"
            raise error("FusedOptimizer", "backward", rule, got, remedy, RuntimeError)
        self._moved_since_step = True
        self.steps += 1

    @torch.no_grad()
    def apply(self, first: int, gradient: Tensor, rows: Tensor | None = None) -> None:
        """One step for some of the centres. The first block of a backward pass comes first.

        A block whose gradient is not finite (a loss scale too large) is left as it is, and a step in which no block
        moved is not counted.

        Args:
            first: the place of the block's first row among `rows`.
            gradient: [n, D].
            rows: int64, the numbers of the centres that take part; None: all. The block is `rows[first : first + n]`.

        Raises:
            RuntimeError: for a second backward pass between two calls of `step`.
        """
        if first == 0:
            self._begin()
        weight, state, finite = self.weight, self.make_state(), all_finite(gradient)
        if self.kind == "adamw" and first == 0:
            state["step"] += 1
            self._moved = torch.zeros_like(finite)
        last = first + len(gradient)
        chosen = None if rows is None else rows[first:last]
        buffers = [weight.detach(), *(state[key] for key in self.split_states if key in state)]
        # A slice is a view and changes in place; chosen rows are a copy that goes back.
        parts = [buffer[first:last] if chosen is None else buffer.index_select(0, chosen) for buffer in buffers]
        self._update(parts[0], self._clipped(gradient).to(weight.dtype), parts[1:], finite)
        if chosen is not None:
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.index_copy_(0, chosen, part)
        if self.kind == "adamw":
            self._moved |= finite
            if first + len(gradient) == len(weight if rows is None else rows):
                state["step"] -= (~self._moved).float()
        # The fused updates do not tell autograd: a forward from before this step must not be differentiated after it.
        torch.autograd.graph.increment_version(weight)

    def _scale(self) -> Tensor | None:
        """The factor of the loss and so of its gradients, 0-dim; None without a GradScaler."""
        return None if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=self.weight.device))

    def _clipped(self, gradient: Tensor) -> Tensor:
        """`gradient` [n, D], with rows longer than `max_row_norm` scaled down to it."""
        if self.max_row_norm is None:
            return gradient
        scale = self._scale()
        largest = self.max_row_norm if scale is None else self.max_row_norm * scale
        wide = torch.promote_types(gradient.dtype, torch.float32)
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=wide)
        return gradient * (largest / norm.clamp_min(largest)).to(gradient.dtype)

    def _update(self, weight: Tensor, gradient: Tensor, parts: list[Tensor], finite: Tensor) -> None:
        group = self.param_groups[0]
        common = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "maximize": False,
            "fused": True,
            "grad_scale": self._scale(),
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


def all_finite(values: Tensor) -> Tensor:
    """`values.isfinite().all()`, 0-dim, in one pass that reads: a NaN is both the least and the greatest number."""
    if values.numel() == 0:
        return values.new_ones((), dtype=torch.bool)
    least, greatest = values.aminmax()
    return least.isfinite() & greatest.isfinite()

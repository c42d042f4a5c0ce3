"""What the GPU tests share: the device, its backends, and sweeps and gradients judged against float64."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attfc_cuda import AdaSin, AttFC, functional, testing
from attfc_cuda.ops import autograd as _ops
from attfc_cuda.ops import backend as _backend
from attfc_cuda.ops import eager

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops" / "cpu"))
import cpu_cases  # noqa: E402  (the centre cases, the same numbers as for the CPU kernels)

only_gpu = pytest.mark.only_gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("triton", "cuda") if DEVICE.type == "cuda" else ("cpu",)
HALF = (torch.bfloat16, torch.float16)

# (B, S, D) at each D that the CUDA kernels have: one negative; tails of 2 and more in every axis; several row blocks
# and splits. Then D that only Triton has.
SHAPES = {
    "one": (1, 1, 128),
    "tail": (5, 131, 128),
    "blocks": (130, 515, 256),
    "wide": (67, 2051, 512),
    "ragged": (35, 259, 100),
}


def need(backend: str, dtype: torch.dtype, dim: int) -> None:
    """Skips, with the backend's own reason, a case that it does not run."""
    reason = _backend._unfit(backend, _device(), dtype, dim, True)
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if DEVICE.type == "cuda" else DEVICE


def check_sweep(case: testing.Case, backend: str, **options) -> dict[str, Tensor]:
    """The sweep of the case on the device is no worse than twice plain PyTorch on the same device."""
    case = case.to(DEVICE)
    truth = testing.run(eager.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    actual = testing.run(functional.negative_logsumexp, case, backend=backend, **{"grad_tolerance": 0.0, **options})
    testing.assert_no_worse(actual, truth, plain, case=case)
    return actual


def make_center_case(*arguments, **options) -> cpu_cases.CenterCase:
    given = cpu_cases.make_center_case(*arguments, **options)
    moved = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return cpu_cases.CenterCase(**{name: value if value is None else value.to(DEVICE) for name, value in moved.items()})


def center_gradient(given: cpu_cases.CenterCase, backend: str, grad_tolerance: float = 0.0) -> Tensor:
    """The backend's centre gradient after its sweep."""
    sweep, gradient = _ops.negative_logsumexp_operator(backend), _ops.center_gradient_operator(backend)
    tensors = cpu_cases.arguments(given.case)
    lse = sweep(*tensors, *given.without_target().rest(grad_tolerance), False, False)[0]
    return gradient(given.case.upstream, lse, given.target_grad, *tensors, *given.rest(grad_tolerance))


def check_center_gradient(given: cpu_cases.CenterCase, backend: str) -> Tensor:
    """As `check_sweep`; exactly 0 in empty slots, though everything of an ignored row and of them is NaN."""
    dtype = given.case.centers.dtype
    truth, plain = (cpu_cases.explicit_center_gradient(given, each) for each in (torch.float64, dtype))
    actual = center_gradient(given, backend)
    assert actual.dtype == dtype and not actual[given.case.center_labels < 0].any()
    floor, least = cpu_cases.floor_of_centers(given)
    testing.assert_no_worse(actual, truth, plain, floor=floor, least=least)
    return actual


def make_head(backend: str = "auto", dim: int = 512, capacity: int = 1024, **options) -> AttFC:
    """A head with a 16-bit container, in train mode, on the device."""
    options = {"dtype": torch.bfloat16, "margin": AdaSin(), "num_classes": 4096, **options}
    return AttFC(dim, capacity, backend=backend, preset="published", **{"enqueue": "before", **options}).to(DEVICE)


def batches(count: int, rows: int = 96, dim: int = 512, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(embeddings, labels, two gallery embeddings a row) of a few classes, one row in eight ignored."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        labels = torch.randint(200, (rows,), generator=generator)
        identity = torch.randn(200, dim, generator=torch.Generator().manual_seed(1))[labels]
        noise = torch.randn(3, rows, dim, generator=generator)
        labels[::8] = -1
        images = (identity + noise).to(DEVICE)
        made.append((images[0], labels.to(DEVICE), images[1:].transpose(0, 1).contiguous()))
    return made


def step(head: AttFC, embeddings: Tensor, labels: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient of the embeddings) of one training step of the head."""
    x = embeddings.detach().requires_grad_()
    loss = head(x, labels, gallery)
    return loss.detach(), torch.autograd.grad(loss, x)[0]

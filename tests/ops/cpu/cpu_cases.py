"""Shared by the tests of the compiled CPU kernels: how a sweep and a gradient of the centres are judged."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.functional import negative_logsumexp
from attfc_cuda.ops import backend as _backend
from attfc_cuda.ops import eager

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Best first, as the kernels choose.
CAPABILITIES = ["amx", "avx512_bf16", "avx512", "avx2", "generic"]
# The same numbers of a matrix in other places of memory.
STRIDED_VIEWS = {
    "rows apart": lambda t: torch.cat([t, torch.full_like(t, math.nan)], dim=1)[:, : t.shape[1]],
    "odd rows apart": lambda t: torch.cat([t, torch.full_like(t[:, :1], math.nan)], dim=1)[:, : t.shape[1]],
    "transposed": lambda t: t.T.contiguous().T,
    "every other": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "shifted": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}

needs_extension = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)


def arguments(case: testing.Case) -> tuple[Tensor, ...]:
    return case.embeddings, case.centers, case.labels, case.center_labels


def modulation(case: testing.Case) -> dict[str, Tensor | None]:
    return {"threshold": case.threshold, "quad": case.quad, "lin": case.lin, "const": case.const}


def check_sweep(case: testing.Case, **options) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The CPU sweep of the case is no worse than twice plain PyTorch; returns its results and the truth."""
    truth = testing.run(eager.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    actual = testing.run(negative_logsumexp, case, backend="cpu", **{"grad_tolerance": 0.0, **options})
    testing.assert_no_worse(actual, truth, plain, case=case)
    return actual, truth


def raw_centers(case: testing.Case, seed: int = 0) -> tuple[testing.Case, Tensor]:
    """The case with centres of lengths from 1/4 to 4, and center_scale, their inverse norms; NaN in empty slots."""
    generator = torch.Generator().manual_seed(seed)
    length = 4 ** (2 * torch.rand(len(case.centers), 1, generator=generator, dtype=torch.float64) - 1)
    centers = (case.centers.double() * length).to(case.centers.dtype)
    scale = 1 / centers.double().norm(dim=1)
    return dataclasses.replace(case, centers=centers), scale.to(case.target_logit.dtype)


@dataclasses.dataclass
class CenterCase:
    """A sweep's case, whose `upstream` is grad_lse, and what the gradient of its centres needs besides."""

    case: testing.Case
    center_scale: Tensor | None
    target_grad: Tensor | None

    def rest(self, grad_tolerance: float = 0.0) -> tuple:
        """What both operators take after the tensors of arguments()."""
        return self.center_scale, self.case.row_values(), self.case.scale, grad_tolerance

    def without_target(self) -> CenterCase:
        """The same without target logits, under which the sweep is exact in every row."""
        return dataclasses.replace(self, case=dataclasses.replace(self.case, target_logit=None))


def make_center_case(
    shape: tuple[int, int, int], dtype: torch.dtype, *, raw: bool, target: bool = True, seed: int = 1, **options
) -> CenterCase:
    """`testing.make_case` with centres that are trained: raw or unit. Everything of an ignored row is NaN, and the
    first of several rows is one, unless ignored is 0."""
    case = testing.make_case(shape, dtype, seed=seed, **options)
    if len(case.labels) > 1 and options.get("ignored", 0.1):
        case.labels[0] = -1
    case, center_scale = raw_centers(case, seed) if raw else (case, None)
    generator = torch.Generator().manual_seed(seed)
    target_grad = None
    if target:
        target_grad = (-case.scale * torch.rand(len(case.labels), generator=generator)).to(case.target_logit)
    for rows in (case.embeddings, case.upstream, case.target_logit, target_grad, *modulation(case).values()):
        if rows is not None:
            rows[case.labels < 0] = math.nan
    return CenterCase(case, center_scale, target_grad)


def swept_lse(given: CenterCase) -> Tensor:
    """lse of the CPU sweep, NaN in ignored rows; without a target_logit, under which every row is exact."""
    lse = torch.ops.attfc.negative_logsumexp(*arguments(given.case), *given.without_target().rest(), False, False)[0]
    return torch.where(given.case.labels >= 0, lse, math.nan)


def center_gradient(given: CenterCase, grad_tolerance: float = 0.0, lse: Tensor | None = None) -> Tensor:
    """The operator's result for the case."""
    lse = swept_lse(given) if lse is None else lse
    return torch.ops.attfc.center_gradient(
        given.case.upstream, lse, given.target_grad, *arguments(given.case), *given.rest(grad_tolerance)
    )


def explicit_center_gradient(given: CenterCase, dtype: torch.dtype) -> Tensor:
    """The same by autograd over all cosines, products and normalisation in `dtype`, logits in at least float32."""
    case = given.case
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    valid, filled = case.labels >= 0, case.center_labels >= 0

    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(valid, values.to(wide), 0)

    leaf = case.centers.to(dtype).requires_grad_()
    kept = torch.where(filled[:, None], leaf, 0)
    x = torch.where(valid[:, None], case.embeddings.to(dtype), 0)
    cosine = (x @ (kept if given.center_scale is None else F.normalize(kept)).T).to(wide)
    lse = eager.logsumexp_of_cosines(
        cosine, case.labels, case.center_labels, **{key: rows(value) for key, value in modulation(case).items()},
        scale=case.scale,
    )[0]  # fmt: skip
    loss = (torch.where(lse.isfinite(), lse, 0) * rows(case.upstream)).sum()
    if given.target_grad is not None:
        own = (case.labels[:, None] == case.center_labels) & valid[:, None]
        loss = loss + (torch.where(own, cosine, 0) * rows(given.target_grad)[:, None]).sum()
    return torch.autograd.grad(loss, leaf)[0]


def floor_of_centers(given: CenterCase) -> tuple[float, float]:
    """(floor, least) as `testing.floor_of`: the same roundings, and besides a number of the dtype may be subnormal."""
    floor, least = testing.floor_of("grad_embeddings", given.case)
    return floor, max(least, torch.finfo(given.case.centers.dtype).tiny)


def check_center_gradient(given: CenterCase, **options) -> tuple[Tensor, Tensor]:
    """The gradient is no worse than twice plain PyTorch and exactly 0 in empty slots; returns it and the truth."""
    dtype = given.case.centers.dtype
    truth, plain = (explicit_center_gradient(given, as_dtype) for as_dtype in (torch.float64, dtype))
    actual = center_gradient(given, **options)
    assert actual.dtype == dtype and actual.is_contiguous()
    assert not actual[given.case.center_labels < 0].any()
    floor, least = floor_of_centers(given)
    testing.assert_no_worse(actual, truth, plain, floor=floor, least=least)
    return actual, truth


def run_with_capability(capability: str, code: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own, since the instruction set is chosen once."""
    environment = {**os.environ, "ATTFC_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).resolve().parents[3]
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)

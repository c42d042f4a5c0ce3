"""16-bit numbers in Triton's interpreter round as on a GPU, and the kernels' tests would notice if they did not.

Run by test_interpreter.py, like the other *_cases.py files.
"""

from __future__ import annotations

import math

import interpreter_setup
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreter_setup import BFLOAT16, FLOAT16
from sweep_cases import sweep

ROWS, SLOTS = 16, 256
# The largest error of rounding to the nearest, relative to the number.
UNIT = {BFLOAT16: 2.0**-9, FLOAT16: 2.0**-12}


@triton.jit
def cast_kernel(from_ptr, to_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(to_ptr + place, tl.load(from_ptr + place).to(to_ptr.dtype.element_ty))


def cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(values.shape, dtype=dtype)
    cast_kernel[(1,)](values, out, COUNT=len(values))
    return out


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_casts_are_pytorch_s(dtype):
    generator = torch.Generator().manual_seed(0)
    ends = [0.0, -0.0, math.inf, -math.inf, math.nan, 3.0e38, 65519.0, 2.0**-130, 2.0**-133, 6.0e-8]
    ties = [1.005859375, -1.005859375, 1.00390625, 1.01171875, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
    values = torch.cat([torch.tensor(ends + ties), torch.randn(240, generator=generator)])
    narrow = cast(values, dtype)
    assert torch.equal(narrow.nan_to_num(7), values.to(dtype).nan_to_num(7))
    assert torch.equal(narrow.isnan(), values.isnan())
    assert torch.equal(cast(narrow, torch.float32).nan_to_num(7), narrow.float().nan_to_num(7))


def relative_gradient(dtype: torch.dtype) -> float:
    """|d lse / d x| over its exact value, the mean over rows.

    All centres are one direction, so the gradient is scale sum_j q_j s_j along it: the sum of the rounded weights over
    that of the exact ones. Errors of rounding to the nearest have no sign and cancel; those of cutting off add up.
    """
    cosine = torch.linspace(-0.9, 0.9, ROWS)
    embeddings = torch.zeros(ROWS, 16)
    embeddings[:, 0], embeddings[:, 1] = cosine, (1 - cosine**2).sqrt()
    embeddings = embeddings.to(dtype).requires_grad_()
    centers = torch.zeros(SLOTS, 16, dtype=dtype)
    centers[:, 0] = 1
    center_scale = torch.linspace(0.5, 1.5, SLOTS)  # weights of a row that differ, with many mantissas
    lse = sweep(
        embeddings, centers, torch.arange(ROWS), torch.arange(100, 100 + SLOTS), center_scale=center_scale, scale=8.0
    )[0]
    # In float32, as the kernel hands it over: the gradient's own 16-bit rounding is not what is looked at.
    (unit_grad,) = (saved for saved in lse.grad_fn.saved_tensors if saved.shape == embeddings.shape)
    logit = 8.0 * embeddings.detach().double()[:, :1] * center_scale.double()
    exact = 8.0 * (logit.softmax(dim=1) * center_scale.double()).sum(dim=1)
    return float((unit_grad[:, 0].double() / exact).mean())


def six_deviations(dtype: torch.dtype) -> float:
    """Of the mean of ROWS x SLOTS errors, uniform within +-UNIT. Weights differ by up to e^8 in a row, which leaves
    about a tenth of them that count."""
    return 6 * UNIT[dtype] / math.sqrt(3 * ROWS * SLOTS / 10)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_weights_are_rounded_to_the_nearest(dtype):
    assert abs(relative_gradient(dtype) - 1) < six_deviations(dtype)


def test_weights_that_are_cut_off_are_noticed(monkeypatch):
    def cut_off(values):
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)

    monkeypatch.setattr(interpreter_setup, "to_bfloat16", cut_off)
    assert relative_gradient(BFLOAT16) - 1 < -2 * six_deviations(BFLOAT16)

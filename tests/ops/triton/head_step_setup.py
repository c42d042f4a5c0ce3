"""For head_step_cases.py: the operators by Triton on the CPU, where the interpreter runs their kernels, beside those in
C++, and what the cases are made of."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import interpreter_setup  # noqa: F401 (bfloat16 as a GPU has it)
import pytest
import torch
import triton.runtime.interpreter as interpreter

from attfc_cuda.ops import backend, head_step
from attfc_cuda.ops.triton import head_step as triton_head_step

sys.path.append(str(Path(__file__).parents[2] / "heads"))
UNIT = 2.0**-24  # the largest relative error of a float32 rounding

if reason := backend.why_not("cpu"):
    pytest.skip(f"the operators come with the extension: {reason}", allow_module_level=True)
if not hasattr(torch.ops.attfc, "head_rows_triton"):
    head_step.register_triton(triton_head_step.KERNELS, "cpu")


def run(name, backend, *arguments):
    """A list of what the operator returns, whether one or several."""
    result = head_step.operator(name, backend)(*arguments)
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels launched so far."""
    names, call = [], interpreter.GridExecutor.__call__

    def counted(self, *arguments, **keywords):
        names.append(self.fn.__name__)
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return names


@pytest.fixture(params=["first", "last", "shuffled"])
def order(request, monkeypatch):
    """The order in which programs run: nothing may depend on it."""
    generator = torch.Generator().manual_seed(0)

    def programs(*bounds):
        if len(bounds) > 1 or request.param == "first":
            return range(*bounds)
        if request.param == "last":
            return reversed(range(*bounds))
        return torch.randperm(*bounds, generator=generator).tolist()

    monkeypatch.setattr(interpreter, "range", programs, raising=False)
    return request.param


def cosines():
    """Over the whole range, with the ends, what is beyond them, and both sides of the chord's edge."""
    ends = torch.tensor([1.0, 1 - 2.0**-24, 1 - 2.0**-23, 1 - 2.0**-22, 1 + 2.0**-23, math.cos(1e-3)])
    return torch.cat([torch.linspace(-0.999, 0.999, 41), ends, -ends, torch.zeros(1)])

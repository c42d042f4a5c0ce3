"""For the *_cases.py files of this folder: Triton's interpreter with bfloat16 as a GPU has it, and tiles small enough
that small shapes have several of them.

Triton 3.8's interpreter keeps bfloat16 as uint16. Its products multiply those integers; its casts from float32 cut off
instead of rounding (1.005859375 becomes 1.0, compiled code and PyTorch say 1.0078125), subnormals come out too
large. Here both are PyTorch's (rounding_cases.py). Its `tl.sum` of bfloat16 adds the integers too: no kernel of ours
sums 16-bit values (test_compile.py).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.runtime.interpreter as interpreter

from attfc_cuda.ops.triton.configs import Config, padded_dim

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [FLOAT32, BFLOAT16, pytest.param(FLOAT16, marks=pytest.mark.proof)]

_create_dot = interpreter.InterpreterBuilder.create_dot
_cast_impl = interpreter.InterpreterBuilder.cast_impl


def _float32(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), interpreter.tl.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as its bits."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.uint16).numpy()


def _cast_as_a_gpu_does(self, src, dst_type):
    kinds = src.dtype.scalar, dst_type.scalar
    if kinds == (interpreter.tl.bfloat16, interpreter.tl.float32):
        return _float32(src)
    if kinds == (interpreter.tl.float32, interpreter.tl.bfloat16):
        return interpreter.TensorHandle(to_bfloat16(src.data), interpreter.tl.bfloat16)
    return _cast_impl(self, src, dst_type)


def _dot_of_bfloat16(self, a, b, *rest):
    """The interpreter keeps bfloat16 as uint16 and would multiply those integers."""
    if a.dtype.scalar == interpreter.tl.bfloat16:
        a, b = _float32(a), _float32(b)
    return _create_dot(self, a, b, *rest)


interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16
interpreter.InterpreterBuilder.cast_impl = _cast_as_a_gpu_does


def config_for(dtype: torch.dtype, dim: int, block_b: int = 16, block_s: int = 16, **options: bool) -> Config:
    """Tiles of 16 x 16; float32 with two steps or more of D where D > 16."""
    block_d = padded_dim(dim)
    return Config(block_b, block_s, block_d, 16 if dtype == FLOAT32 else block_d, **options)

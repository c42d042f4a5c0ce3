"""For the *_cases.py files of this folder: Triton's interpreter with products of bfloat16, and tiles small enough that
small shapes have several of them."""

from __future__ import annotations

import torch
import triton.runtime.interpreter as interpreter

from attfc_cuda.ops.triton.configs import Config, padded_dim

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [FLOAT32, BFLOAT16, FLOAT16]

_create_dot = interpreter.InterpreterBuilder.create_dot


def _float32(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), interpreter.tl.float32)


def _dot_of_bfloat16(self, a, b, *rest):
    """The interpreter keeps bfloat16 as uint16 and would multiply those integers."""
    if a.dtype.scalar == interpreter.tl.bfloat16:
        a, b = _float32(a), _float32(b)
    return _create_dot(self, a, b, *rest)


interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16


def config_for(dtype: torch.dtype, dim: int, block_b: int = 16, block_s: int = 16, **options: bool) -> Config:
    """Tiles of 16 x 16; float32 with two steps or more of D where D > 16."""
    block_d = padded_dim(dim)
    return Config(block_b, block_s, block_d, 16 if dtype == FLOAT32 else block_d, **options)

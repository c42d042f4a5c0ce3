"""Tile sizes of the Triton sweeps, chosen without a card from what the compiler reports (report.py prints it).

The rule: the largest tiles that neither spill nor outgrow the architecture's shared memory in any variant that ships
(modulated or not, with and without moments, raw or unit centres, skipping or not), with Triton 3.6
and 3.8. Larger BLOCK_B means fewer passes over the centres (L2 traffic per flop is 1 / BLOCK_B), larger BLOCK_S a
better shaped first product. In the centre gradient rows and centres have changed places.

A table rather than triton.autotune: that would compile every tile of every variant at a first call, choose under
whatever else the card is doing, and so let two runs on one machine sum in different orders, where the promise is that
they are bitwise equal. What a card prefers is to be measured once and written here.

sm_90 multiplies with wgmma, whose tiles have at least 64 rows. Everywhere else BLOCK_B = 32 at D = 512: with 64 rows
the accumulator leaves too few registers beside the operands that mma.sync takes from them. On sm_100 blocks under 64
rows keep Triton on mma.sync too: its tensor-memory path does not compile this kernel with Triton 3.6.

float32 embeddings and centres stream through the first product BLOCK_K columns at a time, from L1: 64 KiB of them
would not fit beside the tile, and a float32-unit (`ieee`) product keeps whole operand rows in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIM = 1024
PRECISIONS = ("ieee", "tf32x3", "tf32")


def why_not(dtype: torch.dtype, dim: int) -> str | None:
    """Why the Triton backend has no kernel for the dtype and D, or None where it has one."""
    if dtype not in DTYPES:
        return f"it has no kernel for {dtype}"
    if not 1 <= dim <= MAX_DIM:
        return f"its kernels hold at most D = {MAX_DIM} columns, got {dim}"
    return None


@dataclass(frozen=True)
class Config:
    """Rows and centres of a tile, columns of the first product loaded at a time, and Triton's launch options.

    project_by_product: how the centre gradient of raw centres is projected (center_gradient_kernel.py).
    """

    block_b: int
    block_s: int
    block_d: int
    block_k: int
    num_warps: int = 8
    num_stages: int = 2
    project_by_product: bool = False


def padded_dim(dim: int) -> int:
    """The power of two, 16 at least, that holds `dim` columns."""
    return max(16, 1 << (dim - 1).bit_length())


# (block_b, block_s, num_stages) by padded dim; narrower ones use the first.
_HOPPER_16_BIT = {128: (128, 64, 3), 256: (64, 64, 3), 512: (64, 64, 2), 1024: (16, 16, 2)}
_MMA_SYNC_16_BIT = {128: (64, 32, 3), 256: (64, 32, 2), 512: (32, 32, 3), 1024: (16, 16, 2)}
_FLOAT32 = {128: (64, 32, 2), 256: (32, 32, 2), 512: (32, 16, 2), 1024: (16, 16, 2)}
_FLOAT32_COLUMNS = 32
# Elements of a centre tile beside whose sum (128 registers a thread of 8 warps) the tile itself finds no registers.
_PROJECTED_BY_PRODUCT = 64 * 512


def choose(
    capability: int, dtype: torch.dtype, dim: int, *, need_moments: bool = False, precision: str = "ieee"
) -> Config:
    """The configuration for an architecture (major * 10 + minor), dtype, D and precision of float32 products."""
    block_d = padded_dim(dim)
    wide = _HOPPER_16_BIT if capability == 90 else _MMA_SYNC_16_BIT
    table = _FLOAT32 if dtype == torch.float32 else wide
    block_b, block_s, num_stages = table[max(block_d, min(table))]
    if dtype == torch.float32 and precision == "tf32x3":
        block_b = max(16, block_b // 2)  # each operand is held twice, as its head and its tail
    if dtype == torch.float16 and need_moments:
        block_s = max(16, block_s // 2)  # the moments beside float16's scaled weights take the last registers
    block_k = min(block_d, _FLOAT32_COLUMNS) if dtype == torch.float32 else block_d
    return Config(block_b, block_s, block_d, block_k, num_stages=num_stages)


def choose_center_gradient(capability: int, dtype: torch.dtype, dim: int, *, precision: str = "ieee") -> Config:
    """The configuration of the centre gradient: the sweep's tiles with rows and centres changed over."""
    block_d = padded_dim(dim)
    hopper = capability == 90 and dtype != torch.float32
    table = _FLOAT32 if dtype == torch.float32 else (_HOPPER_16_BIT if hopper else _MMA_SYNC_16_BIT)
    block_s, block_b, num_stages = table[max(block_d, min(table))]
    if dtype == torch.float32:
        # Narrower than the sweep's at D = 128: the projection is beside the sum there, too.
        block_s = max(16, block_s // 2) if precision == "tf32x3" else min(block_s, 32)
    block_k = min(block_d, _FLOAT32_COLUMNS) if dtype == torch.float32 else block_d
    return Config(
        block_b,
        block_s,
        block_d,
        block_k,
        num_stages=num_stages,
        project_by_product=hopper and block_s * block_d >= _PROJECTED_BY_PRODUCT,
    )

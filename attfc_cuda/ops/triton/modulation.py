"""What the two Triton kernels share on the device: loads, the first product, the modulated cosine.

modulated() and times_slope() are csrc/modulation.h in Triton; like it, they leave out nothing themselves: the caller
says which pairs are hard. A "block" is a set of rows of one matrix, [N, D]; `rows` are pointers [N, 1] to their first
columns, `live` [N] says which of them may be read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, row, live, other):
    """One float32 a row; `other` in rows that are not live, and in all of them where the argument was left out."""
    values = tl.full(row.shape, other, tl.float32)
    if pointer is not None:
        values = tl.load(pointer + row, mask=live, other=other)
    return values


@triton.jit
def load_row_value(table, INDEX: tl.constexpr, COUNT: tl.constexpr, rows, row, live, other):
    """One row of the table `row_values` [COUNT, rows], as load_rows() loads it; `other` where the table ends before."""
    values = tl.full(row.shape, other, tl.float32)
    if INDEX < COUNT:
        values = tl.load(table + INDEX * tl.cast(rows, tl.int64) + row, mask=live, other=other)
    return values


@triton.jit
def load_block(rows, live, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Whole rows, padded with zero columns to BLOCK_D; zeros in rows that are not live, whose content may be NaN."""
    column = tl.arange(0, BLOCK_D)
    return tl.load(
        rows + column[None, :],
        mask=live[:, None] if DIM == BLOCK_D else live[:, None] & (column < DIM)[None, :],
        other=0.0,
    )


@triton.jit
def product_of_rows(
    left_rows, left_live, right_rows, right_live, DIM: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """left @ right^T in float32, BLOCK_K columns at a time, of blocks that the sweep does not hold as operands."""
    column = tl.arange(0, BLOCK_K)
    result = tl.zeros([left_rows.shape[0], right_rows.shape[0]], tl.float32)
    for k in tl.range(0, DIM, BLOCK_K):
        k_live = k + column < DIM
        left = tl.load(left_rows + (k + column)[None, :], left_live[:, None] & k_live[None, :], other=0.0)
        right = tl.load(right_rows + (k + column)[None, :], right_live[:, None] & k_live[None, :], other=0.0)
        result = tl.dot(left, tl.trans(right), result, input_precision=PRECISION)
    return result


@triton.jit
def modulated(cosine, hard, quad, lin, const):
    """N(c)."""
    return tl.where(hard, (quad * cosine + lin) * cosine + const, cosine)


@triton.jit
def times_slope(weight, cosine, hard, quad, lin):
    """weight N'(c)."""
    return tl.where(hard, (2 * quad * cosine + lin) * weight, weight)


@triton.jit
def largest_slope(quad, lin):
    """The largest |N'| of a row: cosines lie in [-1, 1], and N' is 1 where not hard."""
    return tl.maximum(1.0, 2 * tl.abs(quad) + tl.abs(lin))

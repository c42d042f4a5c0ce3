"""The Triton merge: the splits of a sweep become one result per row.

Computes csrc/partial_lse.h's merge() of all splits of a row, always summed in the order of the splits, then lse, the
gradients divided by the sum, and the row's statistics. Ignored rows give -inf, 0 and 0 gradients.

Grid: x = row. A program holds a row of the gradient, BLOCK_D / threads float32 a thread, and reads each split's once.
No shared memory to speak of; float32. Bound by reading the partial gradients: 4 splits rows dim bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "splits"])
def merge_kernel(
    partial_ptr,  # [sweep_kernel.FIELDS, splits, rows] float32
    hard_count_ptr,  # [splits, rows] int32
    gradient_ptr,  # [splits, rows, DIM] float32, or None
    label_ptr,  # [rows] int64
    target_logit_ptr,  # [rows] float32 in base e, or None
    lse_ptr,  # out [rows] float32
    hard_total_ptr,  # out [rows] int64
    max_cosine_ptr,  # out [rows] float32
    omitted_mass_ptr,  # out [rows] float32
    unit_grad_ptr,  # out [rows, DIM] float32, or None
    moments_ptr,  # out [rows, 3] float32, or None
    rows,
    splits,
    scale,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,  # splits rounded up to a power of two
):
    LOWEST: tl.constexpr = float("-inf")
    row = tl.program_id(0).to(tl.int64)
    live = tl.load(label_ptr + row) >= 0

    split = tl.arange(0, BLOCK_SPLITS)
    inside = split < splits
    at = split.to(tl.int64) * rows + row
    field = tl.cast(splits, tl.int64) * rows
    references = tl.load(partial_ptr + at, mask=inside & live, other=LOWEST)
    reference = tl.max(references, 0)
    # A split that has seen nothing has R = -inf and sums of 0. Where none has seen anything, any finite R will do.
    shift = tl.where(reference == LOWEST, 0.0, reference)

    column = tl.arange(0, BLOCK_D)
    column_live = column < DIM
    total = 0.0
    moment_quad = 0.0
    moment_lin = 0.0
    moment_const = 0.0
    omitted = 0.0
    gradient = tl.zeros([BLOCK_D], tl.float32)
    here = row
    for _ in range(0, splits):
        factor = tl.exp2(tl.load(partial_ptr + here, mask=live, other=LOWEST) - shift)
        total += factor * tl.load(partial_ptr + field + here)
        moment_quad += factor * tl.load(partial_ptr + 2 * field + here)
        moment_lin += factor * tl.load(partial_ptr + 3 * field + here)
        moment_const += factor * tl.load(partial_ptr + 4 * field + here)
        omitted += factor * tl.load(partial_ptr + 5 * field + here)
        if gradient_ptr is not None:
            gradient += factor * tl.load(gradient_ptr + here * DIM + column, mask=column_live, other=0.0)
        here += rows

    # Nothing valid, or so far below the target that exp() is 0: lse -inf, gradient 0. Divided first: scale / sum may
    # overflow.
    empty = total == 0
    divisor = tl.where(empty, 1.0, total)
    LN2: tl.constexpr = 0.6931471805599453
    tl.store(lse_ptr + row, tl.where(empty, LOWEST, (shift + tl.log2(divisor)) * LN2))
    tl.store(max_cosine_ptr + row, tl.max(tl.load(partial_ptr + 6 * field + at, mask=inside & live, other=LOWEST), 0))
    tl.store(hard_total_ptr + row, tl.sum(tl.load(hard_count_ptr + at, mask=inside, other=0).to(tl.int64), 0))
    target_mass = 0.0
    if target_logit_ptr is not None:
        target_mass = tl.exp2(tl.load(target_logit_ptr + row, mask=live, other=LOWEST) / LN2 - shift)
    tl.store(omitted_mass_ptr + row, tl.where(omitted > 0, omitted / (target_mass + total), 0.0))
    if moments_ptr is not None:
        tl.store(moments_ptr + 3 * row, moment_quad / divisor * scale)
        tl.store(moments_ptr + 3 * row + 1, moment_lin / divisor * scale)
        tl.store(moments_ptr + 3 * row + 2, moment_const / divisor * scale)
    if unit_grad_ptr is not None:
        tl.store(unit_grad_ptr + row * DIM + column, gradient / divisor * scale, mask=column_live)

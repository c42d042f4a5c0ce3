"""The Triton centre gradient: for a tile of class centres, one pass over all embeddings once their lse is known.

Computes, for each slot j of the tile (s_j: center_scale, 1 without; N is that of csrc/modulation.h):

    c_bj = s_j (x_b . w_j)                         first product, recomputed, float32 sums
    q_bj = 2^(scale log2(e) N(c_bj) - lse_b log2(e))
    G_bj = grad_lse_b scale q_bj N'(c_bj)          for negatives; target_grad_b for the row's own class; else 0
    O_j  = sum_b G_bj x_b                          second product; G rounded to the operands' dtype, float32 sums
    out_j = O_j, or with center_scale s_j (O_j - (sum_b G_bj c_bj) s_j w_j): the part along the centre taken away, as
            normalising it does. That sum takes the rounded G, so that what cancels cancels exactly.

A row block's second product is left out where no row of the block needs it: the tile holds none of its own class, and
the row's sum_j q_bj over the tile is at most its share of the tolerance, the same for every tile. The recomputed logits
give that mass exactly, and shares add up to the tolerance in whatever order tiles run.

row_terms_kernel first brings what is per row into one array. Grid: x = block of rows.

center_gradient_kernel is the sweep (sweep_kernel.py) with rows and centres changed over and without a reference that
moves: q is 1 at most, up to rounding. Grid: x = tile of BLOCK_S centres, kept by the program, which streams blocks of
BLOCK_B embeddings past them; those stay in L2. Each output row is written once, by one program, in a fixed order of
sums: deterministic.
Shared memory, in elements of the operands: BLOCK_S BLOCK_D centres, BLOCK_B BLOCK_D for each stage of embeddings, and
BLOCK_B BLOCK_S float32 on their way from one product's layout to the other's; at the end BLOCK_S BLOCK_D of the result.
Registers, a thread, of float32: O takes BLOCK_S BLOCK_D / threads, each B x S matrix BLOCK_B BLOCK_S / threads.
Bound as the sweep is: by the tensor cores, 4 BLOCK_S BLOCK_B BLOCK_D flops a block, and where they multiply by mma.sync
by shared memory reads of the first product; float32 operands at `ieee` precision by the float32 units.

Done for the compiler's sake, so that nothing spills (tests/ops/triton/test_compile.py): terms of a row lie side by side
(each array would take a running address); slots' labels and scales are loaded anew for each block; what follows the
loop is hidden from it; and where O takes half of all registers, the projection is a product too, without a second
BLOCK_S x BLOCK_D matrix beside O.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attfc_cuda.ops.triton.modulation import (
    load_block,
    load_row_value,
    load_rows,
    modulated,
    product_of_rows,
    times_slope,
)

TERMS = 8  # of a row, in this order: lse log2(e), grad_lse scale, threshold, quad, lin, const, target_grad, mass bound


@triton.jit(do_not_specialize=["rows"])
def row_terms_kernel(
    grad_lse_ptr,  # [rows] float32, as all that is per row but labels
    lse_ptr,  # [rows] in base e, -inf: the row has no negatives
    target_grad_ptr,  # [rows], or None: 0
    label_ptr,  # [rows] int64, < 0: ignored
    row_value_ptr,  # [ROW_VALUES, rows], of RowValues
    weight_unit_ptr,  # [1] power of two that multiplies G, or None: 1
    term_ptr,  # out [blocks, BLOCK, TERMS], then 1 / weight unit
    rows,
    scale,
    tolerance,  # a tile's share of grad_tolerance
    BLOCK: tl.constexpr,
    ROW_VALUES: tl.constexpr,  # 0, 1 (no modulation) or 5
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(label_ptr + row, mask=row < rows, other=-1) >= 0
    LOG2E: tl.constexpr = 1.4426950408889634
    # An ignored row's lse is +inf, and that of a row without negatives becomes it: every q is 0 then.
    lse = load_rows(lse_ptr, row, live, float("inf"))
    summed = live & (lse != float("-inf"))
    lse = tl.where(summed, lse * LOG2E, float("inf"))
    target_logit = load_row_value(row_value_ptr, 0, ROW_VALUES, rows, row, summed, float("-inf"))
    unit = 1.0
    if weight_unit_ptr is not None:
        unit = tl.load(weight_unit_ptr)
    tl.store(term_ptr + tl.num_programs(0).to(tl.int64) * BLOCK * 8, 1.0 / unit)
    at = term_ptr + row * 8
    tl.store(at, lse)
    tl.store(at + 1, load_rows(grad_lse_ptr, row, summed, 0.0) * scale * unit)
    tl.store(at + 2, load_row_value(row_value_ptr, 1, ROW_VALUES, rows, row, live, float("inf")))
    tl.store(at + 3, load_row_value(row_value_ptr, 2, ROW_VALUES, rows, row, live, 0.0))
    tl.store(at + 4, load_row_value(row_value_ptr, 3, ROW_VALUES, rows, row, live, 0.0))
    tl.store(at + 5, load_row_value(row_value_ptr, 4, ROW_VALUES, rows, row, live, 0.0))
    tl.store(at + 6, load_rows(target_grad_ptr, row, live, 0.0) * unit)
    # Finite in live rows, so that the own class stays beyond it (and 0 where the tolerance is: 0 inf would be NaN).
    bound = tl.where(tolerance > 0, tolerance * (1.0 + tl.exp2(target_logit * LOG2E - lse)), 0.0)
    bound = tl.where(bound > 3e38, 3e38, bound)
    tl.store(at + 7, tl.where(live, bound, float("inf")))


# Not specialised on sizes: the last batch of an epoch must not compile another kernel.
@triton.jit(do_not_specialize=["rows", "slots"])
def center_gradient_kernel(
    term_ptr,  # of row_terms_kernel with blocks of BLOCK_B
    embedding_ptr,  # [rows, DIM], row stride EMBEDDING_STRIDE
    center_ptr,  # [slots, DIM], row stride center_stride
    label_ptr,  # [rows] int64, < 0: ignored
    center_label_ptr,  # [slots] int64, < 0: empty
    center_scale_ptr,  # [slots], or None: 1, and no projection
    gradient_ptr,  # out [slots, DIM] in the dtype of centers
    rows,
    slots,
    center_stride,
    scale_log2,  # scale log2(e)
    DIM: tl.constexpr,
    EMBEDDING_STRIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,  # DIM rounded up to a power of two; the columns between are zeros
    BLOCK_K: tl.constexpr,  # columns of the first product that are loaded at a time; BLOCK_D: all
    MODULATED: tl.constexpr,  # rows have thresholds
    PROJECT_BY_PRODUCT: tl.constexpr,  # else element by element, with a second BLOCK_S x BLOCK_D matrix
    PRECISION: tl.constexpr,  # of float32 products: ieee, tf32x3, tf32
):
    LOWEST: tl.constexpr = float("-inf")
    HIGHEST: tl.constexpr = float("inf")
    SCALED: tl.constexpr = center_scale_ptr is not None

    slot = tl.arange(0, BLOCK_S)
    first = tl.program_id(0).to(tl.int64) * BLOCK_S
    live = tl.load(center_label_ptr + first + slot, mask=first + slot < slots, other=-1) >= 0
    # An empty slot's content and scale may be NaN: they are never loaded.
    center_rows = center_ptr + (first + slot)[:, None] * center_stride
    if BLOCK_K == BLOCK_D:
        centers = load_block(center_rows, live, DIM, BLOCK_D)
    gradient = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    along = tl.zeros([BLOCK_S], tl.float32)  # sum_b G c

    row = tl.arange(0, BLOCK_B)
    # A tile without a filled slot has nothing to sum.
    blocks = tl.where(tl.max(live.to(tl.int32), 0) > 0, tl.cdiv(rows, BLOCK_B), 0)
    for block in tl.range(0, blocks, disable_licm=True):
        start = tl.cast(block, tl.int64) * BLOCK_B
        label = tl.load(label_ptr + start + row, mask=row < rows - block * BLOCK_B, other=-1)
        row_live = label >= 0
        embedding_rows = embedding_ptr + (start + row)[:, None] * EMBEDDING_STRIDE
        embeddings = load_block(embedding_rows, row_live, DIM, BLOCK_D)
        slot_label = tl.load(center_label_ptr + first + slot, mask=first + slot < slots, other=-1)
        slot_live = slot_label >= 0
        if BLOCK_K == BLOCK_D:
            cosine = tl.dot(embeddings, tl.trans(centers), input_precision=PRECISION)
        else:
            cosine = product_of_rows(embedding_rows, row_live, center_rows, slot_live, DIM, BLOCK_K, PRECISION)
        if SCALED:
            cosine *= load_rows(center_scale_ptr, first + slot, slot_live, 0.0)[None, :]

        # The branch keeps Triton from taking the two products for a chain, as in the sweep.
        weight = tl.zeros([BLOCK_B, BLOCK_S], tl.float32)
        needed = False
        if tl.max(row_live.to(tl.int32), 0) > 0:
            term = term_ptr + (start + row) * 8
            logit = scale_log2 * cosine
            if MODULATED:
                hard = cosine > tl.load(term + 2)[:, None]
                quad = tl.load(term + 3)[:, None]
                lin = tl.load(term + 4)[:, None]
                logit = scale_log2 * modulated(cosine, hard, quad, lin, tl.load(term + 5)[:, None])
            probability = tl.exp2(tl.where(slot_live[None, :], logit - tl.load(term)[:, None], LOWEST))
            weight = tl.load(term + 1)[:, None] * probability
            if MODULATED:
                weight = times_slope(weight, cosine, hard, quad, lin)
            # Not a negative: its class's own. An ignored row and an empty slot meet here too, in a weight of 0.
            own = slot_label[None, :] == label[:, None]
            weight = tl.where(own, tl.load(term + 6)[:, None], weight)
            # What the row would lose with the tile; its own class is beyond any bound. Not "above": NaN needs the tile.
            within = tl.sum(tl.where(own, HIGHEST, probability), 1) <= tl.load(term + 7)
            needed = tl.min(within.to(tl.int32), 0) == 0
            if SCALED and PROJECT_BY_PRODUCT:
                weight = weight.to(embeddings.dtype).to(tl.float32)
                along += tl.where(needed, tl.sum(weight * cosine, 0), 0.0)

        if needed:
            operand = tl.trans(weight.to(embeddings.dtype))
            gradient = tl.dot(operand, embeddings, gradient, input_precision=PRECISION)

    # first stays what it is, but the compiler cannot know: what follows is not worth registers in the loop.
    first = (tl.program_id(0) + tl.minimum(rows, 0)).to(tl.int64) * BLOCK_S
    inside = first + slot < slots
    row_scale = tl.full([BLOCK_S], 1.0, tl.float32) * tl.load(
        term_ptr + tl.cdiv(rows, BLOCK_B).to(tl.int64) * BLOCK_B * 8
    )
    if SCALED:
        live = tl.load(center_label_ptr + first + slot, mask=inside, other=-1) >= 0
        center_scale = load_rows(center_scale_ptr, first + slot, live, 0.0)
        row_scale *= center_scale
        if PROJECT_BY_PRODUCT:
            # O - a w, with a = s sum G c, as u (O / u - (a / u) w): a / u is 1 or -1, exact in any dtype (but where a
            # is all but 0, and u the least that it may be).
            factor = along * center_scale
            unit = tl.maximum(tl.abs(factor), 8.673617379884035e-19)
            diagonal = tl.where(slot[:, None] == slot[None, :], (-factor / unit)[:, None], 0.0)
            gradient = tl.dot(diagonal.to(centers.dtype), centers, gradient / unit[:, None], input_precision=PRECISION)
            row_scale *= unit
        else:
            w = load_block(center_ptr + (first + slot)[:, None] * center_stride, live, DIM, BLOCK_D).to(tl.float32)
            w *= center_scale[:, None]
            gradient -= tl.sum(gradient * w, 1)[:, None] * w
    gradient *= row_scale[:, None]
    column = tl.arange(0, BLOCK_D)
    tl.store(
        gradient_ptr + (first + slot)[:, None] * DIM + column[None, :],
        gradient.to(gradient_ptr.dtype.element_ty),
        mask=inside[:, None] if DIM == BLOCK_D else inside[:, None] & (column < DIM)[None, :],
    )

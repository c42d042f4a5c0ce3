"""The Triton sweep: one pass over a part of the class centres for a block of embeddings.

Computes, for each row b of the block and the negatives j of its split (csrc/partial_lse.h has the accounting):

    c_bj = s_j (x_b . w_j)           first product, float32 sums; s_j: center_scale, 1 without
    z_bj = scale log2(e) N(c_bj)     logits are kept in base 2: exp() is one instruction then
    p_bj = 2^(z_bj - R_b)            float32; 0 for all but valid negatives
    O_b += sum_j p_bj N'(c_bj) s_j w_j   second product; p N' s rounded to the operands' dtype, float32 sums

and leaves R, the sum of p, its moments over hard negatives, the omitted mass, the largest cosine, the number of hard
negatives and O of this split to the merge (merge_kernel.py). N is that of csrc/modulation.h.

Grid: x = block of BLOCK_B rows, y = split of the classes. The programs of one split start together and share its
centres through L2. A program keeps its rows' embeddings and streams tiles of BLOCK_S centres past them.
Shared memory, in elements of the operands: BLOCK_B BLOCK_D embeddings, BLOCK_S BLOCK_D for each stage of centres, and
BLOCK_B BLOCK_S float32 on their way from one product's layout to the other's.
Registers, a thread, of float32: O takes BLOCK_B BLOCK_D / threads (128 of at most 255 at 64 x 512 and 8 warps), each
B x S matrix BLOCK_B BLOCK_S / threads. configs.py has the sizes that ship, report.py what they compile to.
Bound by the tensor cores where operands are 16-bit: 4 BLOCK_B BLOCK_S BLOCK_D flops a tile for BLOCK_S BLOCK_D elements
from L2; where they multiply by mma.sync (all but sm_90), by shared memory reads of the first product. float32 operands
at `ieee` precision: by the float32 units.

Deterministic: a fixed order of sums, no atomics.

Three things are done for the compiler's sake, so that nothing spills (tests/ops/triton/test_compile.py):
loop-invariant code stays in the loop (hoisted addresses alone would take 32 registers); row addresses are 64-bit from
the start (so that a tile's rows differ by constants); and the weights cross into the second product as float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attfc_cuda.ops.triton.modulation import (
    largest_slope,
    load_block,
    load_row_value,
    load_rows,
    modulated,
    product_of_rows,
    times_slope,
)

FIELDS = 7  # of partial_ptr, in this order: R in base 2, sum, moments of quad, lin, const, omitted, largest cosine


# Not specialised on sizes: the last batch of an epoch must not compile another kernel.
@triton.jit(do_not_specialize=["rows", "slots", "tiles_per_split"])
def sweep_kernel(
    embedding_ptr,  # [rows, DIM], row stride embedding_stride
    center_ptr,  # [slots, DIM], row stride CENTER_STRIDE
    label_ptr,  # [rows] int64, < 0: ignored
    center_label_ptr,  # [slots] int64, < 0: empty
    center_scale_ptr,  # [slots], or None: 1
    center_unit_ptr,  # [1] power of two, scale of center_scale among stored weights, or None: 1
    row_value_ptr,  # [ROW_VALUES, rows], of RowValues
    partial_ptr,  # out [FIELDS, splits, rows] float32
    hard_count_ptr,  # out [splits, rows] int32
    gradient_ptr,  # out [splits, rows, DIM] float32, or None: no gradient
    rows,
    slots,
    embedding_stride,
    tiles_per_split,
    scale_log2,  # scale log2(e)
    tolerance,
    target_tolerance,  # tolerance / splits: what all splits omit together stays under the tolerance
    DIM: tl.constexpr,
    CENTER_STRIDE: tl.constexpr,
    ROW_VALUES: tl.constexpr,  # 0, 1 (no modulation) or 5
    BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,  # DIM rounded up to a power of two; the columns between are zeros
    BLOCK_K: tl.constexpr,  # columns of the first product that are loaded at a time; BLOCK_D: all
    NEED_MOMENTS: tl.constexpr,
    MAY_OMIT: tl.constexpr,  # tolerance > 0
    STARTS_AT_TARGET: tl.constexpr,  # R does; else at the first maximum
    SAFE_DISTANCE: tl.constexpr,  # log2 of how far a logit may lie above R
    WEIGHT_SCALE: tl.constexpr,  # p N' s is stored times WEIGHT_SCALE / max(1, largest |N'|); 0: as it is
    PRECISION: tl.constexpr,  # of float32 products: ieee, tf32x3, tf32
):
    LOWEST: tl.constexpr = float("-inf")
    MODULATED: tl.constexpr = ROW_VALUES > 1
    SCALED: tl.constexpr = center_scale_ptr is not None
    NEED_GRAD: tl.constexpr = gradient_ptr is not None

    row = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = row < rows
    label = tl.load(label_ptr + row, mask=inside, other=-1)
    row_live = label >= 0
    target = load_row_value(row_value_ptr, 0, ROW_VALUES, rows, row, row_live, LOWEST) * 1.4426950408889634
    threshold = load_row_value(row_value_ptr, 1, ROW_VALUES, rows, row, row_live, float("inf"))
    quad = load_row_value(row_value_ptr, 2, ROW_VALUES, rows, row, row_live, 0.0)
    lin = load_row_value(row_value_ptr, 3, ROW_VALUES, rows, row, row_live, 0.0)
    const = load_row_value(row_value_ptr, 4, ROW_VALUES, rows, row, row_live, 0.0)
    center_unit = 1.0
    if center_unit_ptr is not None:
        center_unit = tl.load(center_unit_ptr)

    column = tl.arange(0, BLOCK_D)
    column_live = column < DIM
    embedding_rows = embedding_ptr + row.to(tl.int64)[:, None] * embedding_stride
    if BLOCK_K == BLOCK_D:
        embeddings = load_block(embedding_rows, row_live, DIM, BLOCK_D)

    # An ignored row's R is +inf: every p is 0 then.
    reference = tl.where(row_live, target if STARTS_AT_TARGET else LOWEST, float("inf"))
    total = tl.zeros([BLOCK_B], tl.float32)
    moment_quad = tl.zeros([BLOCK_B], tl.float32)
    moment_lin = tl.zeros([BLOCK_B], tl.float32)
    moment_const = tl.zeros([BLOCK_B], tl.float32)
    omitted = tl.zeros([BLOCK_B], tl.float32)
    max_cosine = tl.full([BLOCK_B], LOWEST, tl.float32)
    hard_count = tl.zeros([BLOCK_B], tl.int32)
    gradient = tl.zeros([BLOCK_B, BLOCK_D if NEED_GRAD else 1], tl.float32)

    slot = tl.arange(0, BLOCK_S)
    first = tl.program_id(1) * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(slots, BLOCK_S))
    for tile in tl.range(first, last, disable_licm=True):
        start = tl.cast(tile, tl.int64) * BLOCK_S
        slot_label = tl.load(center_label_ptr + start + slot, mask=start + slot < slots, other=-1)
        slot_live = slot_label >= 0
        # An empty slot's content may be NaN: it is never loaded.
        center_rows = center_ptr + (start + slot)[:, None] * CENTER_STRIDE
        if NEED_GRAD or BLOCK_K == BLOCK_D:
            centers = load_block(center_rows, slot_live, DIM, BLOCK_D)
        if BLOCK_K == BLOCK_D:
            cosine = tl.dot(embeddings, tl.trans(centers), input_precision=PRECISION)
        else:
            cosine = product_of_rows(embedding_rows, row_live, center_rows, slot_live, DIM, BLOCK_K, PRECISION)
        if SCALED:
            center_scale = load_rows(center_scale_ptr, start + slot, slot_live, 0.0)
            cosine *= center_scale[None, :]
        # -inf is a cosine that is never hard, never the largest, and whose p is 0.
        cosine = tl.where(slot_live[None, :] & (slot_label[None, :] != label[:, None]), cosine, LOWEST)

        # A tile without a filled slot has nothing to weigh. The branch also keeps Triton from taking the two products
        # for a chain, whose first product it would repeat in every group of warps.
        weight = tl.zeros([BLOCK_B, BLOCK_S], tl.float32)
        needed = False
        if tl.max(slot_live.to(tl.int32), 0) > 0:
            max_cosine = tl.maximum(max_cosine, tl.max(cosine, 1))
            hard = cosine > threshold[:, None]
            logit = scale_log2 * cosine
            if MODULATED:
                logit = scale_log2 * modulated(cosine, hard, quad[:, None], lin[:, None], const[:, None])
                hard_count += tl.sum(hard.to(tl.int32), 1)

            # must_move(): R follows the largest logit lazily, so that O is hardly ever scaled.
            largest = tl.max(logit, 1)
            moves = largest > reference + SAFE_DISTANCE
            if tl.max(moves.to(tl.int32), 0) > 0:
                factor = tl.where(moves, tl.exp2(reference - largest), 1.0)
                reference = tl.where(moves, largest, reference)
                total *= factor
                omitted *= factor
                if NEED_MOMENTS:
                    moment_quad *= factor
                    moment_lin *= factor
                    moment_const *= factor
                if NEED_GRAD:
                    gradient *= factor[:, None]

            # R = -inf: nothing valid so far. Subtracting 0 instead leaves every logit at -inf.
            shift = tl.where(reference == LOWEST, 0.0, reference)
            probability = tl.exp2(logit - shift[:, None])
            mass = tl.sum(probability, 1)
            total += mass
            if MODULATED and NEED_MOMENTS:
                moment_const += tl.sum(tl.where(hard, probability, 0.0), 1)
                moment = tl.where(hard, probability * cosine, 0.0)
                moment_lin += tl.sum(moment, 1)
                moment_quad += tl.sum(tl.where(hard, moment * cosine, 0.0), 1)
            if NEED_GRAD:
                weight = probability
                if MODULATED:
                    weight = times_slope(probability, cosine, hard, quad[:, None], lin[:, None])
                if SCALED:
                    weight *= (center_scale * center_unit)[None, :]
                if WEIGHT_SCALE > 0:
                    weight *= (WEIGHT_SCALE / largest_slope(quad, lin))[:, None]
                # A tile without mass is never needed; beyond that may_omit() decides.
                row_needs = mass != 0
                if MAY_OMIT:
                    bound = tolerance * total
                    if ROW_VALUES > 0:
                        bound += target_tolerance * tl.exp2(target - shift)
                    row_needs = row_needs & ((omitted + mass <= bound) == 0)
                needed = tl.max(row_needs.to(tl.int32), 0) > 0
                if MAY_OMIT:
                    omitted += tl.where(needed, 0.0, mass)

        if NEED_GRAD:  # noqa: SIM102 (a compile-time condition around one on the device)
            if needed:
                gradient = tl.dot(weight.to(centers.dtype), centers, gradient, input_precision=PRECISION)

    at = tl.program_id(1).to(tl.int64) * rows + row
    field = tl.num_programs(1).to(tl.int64) * rows
    tl.store(partial_ptr + at, reference, mask=inside)
    tl.store(partial_ptr + field + at, total, mask=inside)
    tl.store(partial_ptr + 2 * field + at, moment_quad, mask=inside)
    tl.store(partial_ptr + 3 * field + at, moment_lin, mask=inside)
    tl.store(partial_ptr + 4 * field + at, moment_const, mask=inside)
    tl.store(partial_ptr + 5 * field + at, omitted, mask=inside)
    tl.store(partial_ptr + 6 * field + at, max_cosine, mask=inside)
    tl.store(hard_count_ptr + at, hard_count, mask=inside)
    if NEED_GRAD:
        if WEIGHT_SCALE > 0:
            gradient *= (largest_slope(quad, lin) / (WEIGHT_SCALE * center_unit))[:, None]
        tl.store(
            gradient_ptr + at[:, None] * DIM + column[None, :],
            gradient,
            mask=inside[:, None] if DIM == BLOCK_D else inside[:, None] & column_live[None, :],
        )

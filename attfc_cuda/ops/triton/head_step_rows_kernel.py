"""The rows of a head step before and after the sweep: head_rows and row_gradients of csrc/head_step.h in Triton.

Grid: x = row (of head_rows: extra rows first). A program holds a row, its class centre and one image of the gallery,
BLOCK_D / threads float32 a thread each; sums are float32 and in the order of the layout: two runs give the same bits.
Bound by latency: a pass over the row waits for its loads, then for its sum.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inverse_norm(row, SHORTEST_ROW: tl.constexpr):
    """1 / |row|; 0 for one too short to have a direction. A NaN fails the comparison and stays."""
    norm = tl.sqrt_rn(tl.sum(row * row, 0))
    return tl.where(norm < SHORTEST_ROW, 0.0, 1.0 / norm)


@triton.jit
def norm_of_at_least(square):
    """F.normalize's divisor: a gallery of zeros gives a centre of zeros."""
    norm = tl.sqrt_rn(square)
    return tl.where(norm < 1e-12, 1e-12, norm)


@triton.jit
def class_code_sign(number, column, DIM: tl.constexpr):
    """+1 or -1 for each column of a class's code: class_code_sign of csrc/class_code.h."""
    x = number.to(tl.uint64) * DIM + column.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return 1.0 - 2.0 * ((x ^ (x >> 31)) & 1).to(tl.float32)


@triton.jit(do_not_specialize=["extra_rows", "gallery_size", "num_classes", "embedding_stride", "stored_stride"])
def head_rows_kernel(
    embedding_ptr,  # [rows, DIM], row stride embedding_stride
    label_ptr,  # [rows] int64
    gallery_ptr,  # [rows, gallery_size, DIM]
    extra_ptr,  # [extra_rows, DIM]
    extra_label_ptr,  # [extra_rows] int64
    code_ptr,  # [num_classes] int64, the number whose code a class has, or None: its own
    stored_ptr,  # [slots, DIM], row stride stored_stride, or None: no memory of centres
    slot_label_ptr,  # [slots] int64, as stored_ptr
    slot_of_class_ptr,  # [num_classes + 1] int32, as stored_ptr
    unit_ptr,  # out [rows, DIM]
    inverse_norm_ptr,  # out [rows] float32
    cosine_ptr,  # out [rows] float32
    row_label_ptr,  # out [rows] int64
    center_ptr,  # out [extra_rows + rows, DIM] float32
    new_label_ptr,  # out [extra_rows + rows] int64
    extra_rows,
    gallery_size,
    num_classes,
    embedding_stride,
    stored_stride,
    temperature,
    code_size,  # of an entry: class_code / sqrt(DIM)
    center_memory,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CODE: tl.constexpr,
    SHORTEST_ROW: tl.constexpr,
):
    out_row = tl.program_id(0).to(tl.int64)
    row = out_row - extra_rows
    is_extra = row < 0
    label = tl.load(extra_label_ptr + out_row, mask=is_extra, other=0)
    label += tl.load(label_ptr + row, mask=row >= 0, other=0)
    live = (label >= 0) & (label < num_classes)
    column = tl.arange(0, BLOCK_D)
    inside = column < DIM
    # What does not count is not read: it may be NaN.
    x = tl.load(embedding_ptr + row * embedding_stride + column, mask=inside & live & (row >= 0), other=0.0)
    extra = tl.load(extra_ptr + out_row * DIM + column, mask=inside & live & is_extra, other=0.0)
    x = tl.where(is_extra, extra.to(tl.float32), x.to(tl.float32))
    inverse = inverse_norm(x, SHORTEST_ROW)
    unit = x * inverse

    # The gallery's mean by attention: the softmax runs along, weights are relative to the largest logit so far.
    center = tl.zeros([BLOCK_D], tl.float32)
    reference = float("-inf")
    mass = 0.0
    for k in tl.range(0, tl.where(is_extra, 0, gallery_size)):
        image_ptr = gallery_ptr + (row * gallery_size + k) * DIM
        image = tl.load(image_ptr + column, mask=inside & live, other=0.0).to(tl.float32)
        logit = tl.sum(unit * image, 0) / norm_of_at_least(tl.sum(image * image, 0)) / temperature
        largest = tl.where(logit > reference, logit, reference)
        keep = tl.where(reference == largest, 1.0, tl.exp(reference - largest))
        weight = tl.exp(logit - largest)
        center = keep * center + weight * image
        mass = keep * mass + weight
        reference = largest
    mass = tl.where(is_extra, 1.0, mass)
    center = center / mass
    center = tl.where(is_extra, unit, center / norm_of_at_least(tl.sum(center * center, 0)))

    if HAS_CODE:
        number = label
        if code_ptr is not None:
            number = tl.load(code_ptr + label, mask=live, other=0)
        center += tl.where(inside, code_size * class_code_sign(number, column, DIM), 0.0)
        center *= inverse_norm(center, SHORTEST_ROW)
    if stored_ptr is not None:
        slot = tl.load(slot_of_class_ptr + label, mask=live, other=-1).to(tl.int64)
        # An evicted class's entry is left standing: its slot shows another label.
        held = (slot >= 0) & (tl.load(slot_label_ptr + slot, mask=slot >= 0, other=-1) == label)
        stored = tl.load(stored_ptr + slot * stored_stride + column, mask=inside & held, other=0.0).to(tl.float32)
        moved = center + center_memory * (stored - center)
        center = tl.where(held, moved * inverse_norm(moved, SHORTEST_ROW), center)

    center = tl.where(live, center, 0.0)
    tl.store(center_ptr + out_row * DIM + column, center, mask=inside)
    # Unit rows: what is finite here is so in any container's format.
    is_finite = tl.sum(center * center, 0) < float("inf")
    tl.store(new_label_ptr + out_row, tl.where(live & is_finite, label, -1))
    if row >= 0:
        tl.store(unit_ptr + row * DIM + column, unit.to(unit_ptr.dtype.element_ty), mask=inside)
        tl.store(inverse_norm_ptr + row, inverse)
        tl.store(cosine_ptr + row, tl.sum(unit * center, 0))
        tl.store(row_label_ptr + row, tl.where(live, label, -1))


@triton.jit(do_not_specialize=["embedding_stride"])
def row_gradients_kernel(
    upstream_ptr,  # one float32
    embedding_ptr,  # [rows, DIM], row stride embedding_stride
    unit_grad_ptr,  # [rows, DIM] float32
    inverse_norm_ptr,  # [rows] float32
    center_ptr,  # [rows, DIM] float32
    label_ptr,  # [rows] int64
    lse_weight_ptr,  # [rows] float32
    cosine_weight_ptr,  # [rows] float32
    grad_ptr,  # out [rows, DIM]
    embedding_stride,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    inverse = tl.load(inverse_norm_ptr + row)
    live = (tl.load(label_ptr + row) >= 0) & (inverse != 0)
    upstream = tl.load(upstream_ptr)
    column = tl.arange(0, BLOCK_D)
    inside = (column < DIM) & live
    unit = tl.load(embedding_ptr + row * embedding_stride + column, mask=inside, other=0.0).to(tl.float32) * inverse
    by_unit = upstream * tl.load(lse_weight_ptr + row) * tl.load(unit_grad_ptr + row * DIM + column, inside, 0.0)
    by_unit += upstream * tl.load(cosine_weight_ptr + row) * tl.load(center_ptr + row * DIM + column, inside, 0.0)
    # The part along the row, which the normalisation takes out.
    along = tl.sum(by_unit * unit, 0)
    gradient = tl.where(live, (by_unit - along * unit) * inverse, 0.0)
    tl.store(grad_ptr + row * DIM + column, gradient.to(grad_ptr.dtype.element_ty), mask=column < DIM)

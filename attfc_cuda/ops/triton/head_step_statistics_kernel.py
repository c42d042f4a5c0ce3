"""What a head reports of a step: step_statistics of csrc/head_step.h in Triton.

Many programs, each a share of the slots, whose labels it compares with those of the rows, BLOCK_SLOTS x BLOCK_ROWS at a
time: rows x slots comparisons of integers, for Triton has no table to look labels up in; that is what bounds it. Counts
are added as integers, in any order, each by one thread, which then takes a ticket; the program with the last one makes
the means, in the order of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

STATE_SIZE = 3  # int64, zeros before the launch: filled slots, (row, slot) pairs of one class, programs that are done


@triton.jit
def write_results(
    loss_ptr,
    label_ptr,
    cosine_ptr,
    hard_count_ptr,
    max_cosine_ptr,
    omitted_mass_ptr,
    extra_label_ptr,
    t_ptr,
    mean_ptr,
    count_ptr,
    filled,
    own_pairs,
    rows,
    extra_rows,
    BLOCK_MEANS: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_MEANS)
    live_rows = tl.zeros([BLOCK_MEANS], tl.int64)
    hard = tl.zeros([BLOCK_MEANS], tl.int64)
    nearest = tl.zeros([BLOCK_MEANS], tl.int64)
    extra = tl.zeros([BLOCK_MEANS], tl.int64)
    cosines = tl.zeros([BLOCK_MEANS], tl.float32)
    omitted = tl.zeros([BLOCK_MEANS], tl.float32)
    for first in tl.range(0, rows, BLOCK_MEANS):
        row = first + lane
        live = tl.load(label_ptr + row, mask=row < rows, other=-1) >= 0
        cosine = tl.load(cosine_ptr + row, mask=live, other=0.0)
        live_rows += live.to(tl.int64)
        hard += tl.load(hard_count_ptr + row, mask=live, other=0)
        nearest += (cosine > tl.load(max_cosine_ptr + row, mask=live, other=float("inf"))).to(tl.int64)
        cosines += cosine
        omitted += tl.load(omitted_mass_ptr + row, mask=live, other=0.0)
    for first in tl.range(0, extra_rows, BLOCK_MEANS):
        row = first + lane
        extra += (tl.load(extra_label_ptr + row, mask=row < extra_rows, other=-1) >= 0).to(tl.int64)
    count = tl.sum(live_rows, 0)
    pairs = tl.maximum(count * filled - own_pairs, 1)
    share = tl.maximum(count, 1).to(tl.float32)
    t = 0.0
    if t_ptr is not None:
        t = tl.load(t_ptr)
    tl.store(mean_ptr, tl.load(loss_ptr))
    tl.store(mean_ptr + 1, tl.sum(cosines, 0) / share)
    tl.store(mean_ptr + 2, tl.sum(hard, 0).to(tl.float32) / pairs.to(tl.float32))
    tl.store(mean_ptr + 3, tl.sum(nearest, 0).to(tl.float32) / share)
    tl.store(mean_ptr + 4, tl.sum(omitted, 0) / share)
    tl.store(mean_ptr + 5, t)
    tl.store(count_ptr, filled)
    tl.store(count_ptr + 1, count + tl.sum(extra, 0))


@triton.jit(do_not_specialize=["rows", "extra_rows", "slots", "tiles_per_program"])
def step_statistics_kernel(
    loss_ptr,  # one float32
    label_ptr,  # [rows] int64
    cosine_ptr,  # [rows] float32
    hard_count_ptr,  # [rows] int64
    max_cosine_ptr,  # [rows] float32
    omitted_mass_ptr,  # [rows] float32
    slot_label_ptr,  # [slots] int64
    extra_label_ptr,  # [extra_rows] int64
    t_ptr,  # one float32, or None: 0
    state_ptr,  # in, out [STATE_SIZE] int64
    mean_ptr,  # out [6] float32, of head_step.MEANS
    count_ptr,  # out [2] int64, of head_step.COUNTS
    rows,
    extra_rows,
    slots,
    tiles_per_program,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_MEANS: tl.constexpr,
):
    filled = tl.zeros([BLOCK_SLOTS], tl.int64)
    own_pairs = tl.zeros([BLOCK_SLOTS], tl.int64)
    start = tl.program_id(0) * tiles_per_program
    for tile in tl.range(start, start + tiles_per_program):
        slot = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
        slot_label = tl.load(slot_label_ptr + slot, mask=slot < slots, other=-1)
        is_filled = slot_label >= 0
        filled += is_filled.to(tl.int64)
        for first in tl.range(0, rows, BLOCK_ROWS):
            row = first + tl.arange(0, BLOCK_ROWS)
            label = tl.load(label_ptr + row, mask=row < rows, other=-1)
            own = (slot_label[:, None] == label[None, :]) & is_filled[:, None]
            own_pairs += tl.sum(own.to(tl.int32), 1)
    tl.atomic_add(state_ptr, tl.sum(filled, 0))
    tl.atomic_add(state_ptr + 1, tl.sum(own_pairs, 0))
    if tl.atomic_add(state_ptr + 2, 1) == tl.num_programs(0) - 1:
        write_results(
            loss_ptr, label_ptr, cosine_ptr, hard_count_ptr, max_cosine_ptr, omitted_mass_ptr, extra_label_ptr, t_ptr,
            mean_ptr, count_ptr, tl.atomic_add(state_ptr, 0), tl.atomic_add(state_ptr + 1, 0), rows, extra_rows,
            BLOCK_MEANS,
        )  # fmt: skip

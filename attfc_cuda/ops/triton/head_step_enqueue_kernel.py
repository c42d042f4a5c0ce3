"""A step's centres enter the container: enqueue_fifo and enqueue_refresh of csrc/head_step.h in Triton.

fifo: fifo_plan (one program: the place of each row among those written), scatter.
refresh, for k rows that wait for a slot:
    refresh_plan      programs for rows: whether a row is the last of its class, by comparing labels, and whether the
                      class has a slot, whose stamp is raised; programs for slots: a lower bound for the stamps
    stamp_histogram   the stamps over bins that are fine at the old end; one more program: the order of the waiting rows
    collect_oldest    the slots in the bins up to the one of the k-th smallest stamp: a list in any order
    hand_out          each of the list counts who is older: the k oldest get the k rows, in order
    scatter           a program a row: the centres, in the container's dtype; the clock
Nothing that is written depends on the order of programs: atomics add integers, or hand out places in a list whose order
does not matter; the bound may be read while a stamp is raised, and a stale one is as good, for stamps only grow.
Bound by reading 8 S bytes of stamps three times, by latency where S is small. As in csrc/cuda/enqueue.cu the list has
k + k / 64 slots or so, and all S only where the k-th stamp lies far from the oldest and near all others.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Bins of a stamp's distance d from the bound: d as float32, but for the last 17 bits. So 64 bins a doubling, d < 128
# exact, and the largest d of an int64, 2^63, in bin 63 * 64 + 1. The last bin is for what does not count.
BINS = 4096
WAITS = -2  # a row's slot: it waits for one; -1: the row is not written
STATE_WAITING, STATE_CANDIDATES, STATE_SIZE = 0, 1, 2  # int64
HIGHEST = 2**63 - 1

_BINS = tl.constexpr(BINS)
_WAITS = tl.constexpr(WAITS)
_CANDIDATES = tl.constexpr(STATE_CANDIDATES)
_WAITING = tl.constexpr(STATE_WAITING)
_HIGHEST = tl.constexpr(HIGHEST)


@triton.jit(do_not_specialize=["rows", "slots"])
def fifo_plan_kernel(
    new_label_ptr,  # [rows] int64
    label_ptr,  # in, out [slots] int64
    clock_ptr,  # in, out: one int64
    slot_of_row_ptr,  # out [rows] int32
    rows,
    slots,
    BLOCK_ROWS: tl.constexpr,
):
    clock = tl.load(clock_ptr)
    lane = tl.arange(0, BLOCK_ROWS)
    written = tl.zeros([1], tl.int32)
    for first in tl.range(0, rows, BLOCK_ROWS):
        row = first + lane
        label = tl.load(new_label_ptr + row, mask=row < rows, other=-1)
        enters = (label >= 0).to(tl.int32)
        slot = (clock + written + tl.cumsum(enters, 0) - enters) % slots
        tl.store(slot_of_row_ptr + row, tl.where(label >= 0, slot, -1).to(tl.int32), mask=row < rows)
        tl.store(label_ptr + slot, label, mask=label >= 0)
        written += tl.sum(enters, 0)
    tl.debug_barrier()  # all threads have read the clock
    tl.store(clock_ptr + tl.arange(0, 1), clock + written)


@triton.jit
def mark_rows(
    new_label_ptr,
    label_ptr,
    clock_ptr,
    stamp_ptr,
    slot_of_class_ptr,
    slot_of_row_ptr,
    rows,
    first,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    row = first + tl.arange(0, BLOCK_ROWS)
    label = tl.load(new_label_ptr + row, mask=row < rows, other=-1)
    later = tl.zeros([BLOCK_ROWS], tl.int32)
    for start in tl.range(first, rows, BLOCK_OTHERS):
        other = start + tl.arange(0, BLOCK_OTHERS)
        other_label = tl.load(new_label_ptr + other, mask=other < rows, other=-1)
        again = (other_label[None, :] == label[:, None]) & (other[None, :] > row[:, None])
        later += tl.sum(again.to(tl.int32), 1)
    written = (label >= 0) & (later == 0)
    own = tl.load(slot_of_class_ptr + label, mask=written, other=-1)
    # An evicted class's entry is left standing and recognised here: its slot shows another label.
    held = written & (own >= 0) & (tl.load(label_ptr + own, mask=own >= 0, other=-1) == label)
    tl.store(stamp_ptr + own, tl.load(clock_ptr) + row, mask=held)
    tl.store(slot_of_row_ptr + row, tl.where(held, own, tl.where(written, _WAITS, -1)), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "slots", "row_programs", "tiles_per_program"])
def refresh_plan_kernel(
    new_label_ptr,  # [rows] int64
    label_ptr,  # [slots] int64
    clock_ptr,  # one int64
    stamp_ptr,  # in, out [slots] int64
    slot_of_class_ptr,  # [num_classes + 1] int32
    slot_of_row_ptr,  # out [rows] int32
    least_ptr,  # out [slot programs] int64
    histogram_ptr,  # out [BINS] int32: zeros
    state_ptr,  # out [STATE_SIZE] int64: no candidates
    rows,
    slots,
    row_programs,
    tiles_per_program,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    program = tl.program_id(0) - row_programs
    if program < 0:
        first = tl.program_id(0) * BLOCK_ROWS
        mark_rows(
            new_label_ptr, label_ptr, clock_ptr, stamp_ptr, slot_of_class_ptr, slot_of_row_ptr, rows, first, BLOCK_ROWS,
            BLOCK_OTHERS,
        )  # fmt: skip
    else:
        least = tl.full([BLOCK_SLOTS], _HIGHEST, tl.int64)
        for tile in tl.range(program * tiles_per_program, (program + 1) * tiles_per_program):
            slot = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
            least = tl.minimum(least, tl.load(stamp_ptr + slot, mask=slot < slots, other=_HIGHEST))
        tl.store(least_ptr + program, tl.min(least, 0))
        if program == 0:
            tl.store(histogram_ptr + tl.arange(0, _BINS), tl.zeros([_BINS], tl.int32))
            tl.store(state_ptr + _CANDIDATES, 0)


@triton.jit
def rank_waiting_rows(slot_of_row_ptr, waiting_row_ptr, state_ptr, rows, BLOCK_ROWS: tl.constexpr):
    waiting = tl.zeros([1], tl.int32)
    for first in tl.range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        waits = (tl.load(slot_of_row_ptr + row, mask=row < rows, other=-1) == _WAITS).to(tl.int32)
        rank = waiting + tl.cumsum(waits, 0) - waits
        tl.store(waiting_row_ptr + rank, row, mask=waits > 0)
        waiting += tl.sum(waits, 0)
    tl.store(state_ptr + _WAITING + tl.arange(0, 1), waiting.to(tl.int64))


@triton.jit
def least_stamp(least_ptr, programs, BLOCK_PROGRAMS: tl.constexpr):
    program = tl.arange(0, BLOCK_PROGRAMS)
    return tl.min(tl.load(least_ptr + program, mask=program < programs, other=_HIGHEST), 0)


@triton.jit
def stamp_bin(stamp, least, counts):
    """The bin of a stamp; the last one for a slot that does not count."""
    bits = (stamp - least).to(tl.float32).to(tl.int32, bitcast=True) >> 17
    first_of_one = 127 * 64  # the bits of 1.0
    return tl.where(counts, tl.maximum(bits - first_of_one + 1, 0), _BINS - 1)


@triton.jit(do_not_specialize=["rows", "slots", "slot_programs", "tiles_per_program"])
def stamp_histogram_kernel(
    stamp_ptr,  # [slots] int64
    least_ptr,  # [slot_programs] int64
    slot_of_row_ptr,  # [rows] int32
    histogram_ptr,  # in, out [BINS] int32
    waiting_row_ptr,  # out [rows] int32, the rows that wait, in their order
    state_ptr,  # out [STATE_SIZE] int64: how many wait
    rows,
    slots,
    slot_programs,
    tiles_per_program,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_PROGRAMS: tl.constexpr,
):
    program = tl.program_id(0) - 1
    if program < 0:
        rank_waiting_rows(slot_of_row_ptr, waiting_row_ptr, state_ptr, rows, BLOCK_ROWS)
    else:
        least = least_stamp(least_ptr, slot_programs, BLOCK_PROGRAMS)
        counts = tl.zeros([_BINS], tl.int32)
        for tile in tl.range(program * tiles_per_program, (program + 1) * tiles_per_program):
            slot = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
            stamp = tl.load(stamp_ptr + slot, mask=slot < slots, other=0)
            counts += tl.histogram(stamp_bin(stamp, least, slot < slots), _BINS)
        tl.atomic_add(histogram_ptr + tl.arange(0, _BINS), counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["slots", "slot_programs", "tiles_per_program"])
def collect_oldest_kernel(
    stamp_ptr,  # [slots] int64
    least_ptr,  # [slot_programs] int64
    histogram_ptr,  # [BINS] int32
    state_ptr,  # in, out [STATE_SIZE] int64
    candidate_stamp_ptr,  # out [slots] int64
    candidate_slot_ptr,  # out [slots] int32
    slots,
    slot_programs,
    tiles_per_program,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_PROGRAMS: tl.constexpr,
):
    waiting = tl.load(state_ptr + _WAITING)
    if waiting > 0:
        least = least_stamp(least_ptr, slot_programs, BLOCK_PROGRAMS)
        before = tl.cumsum(tl.load(histogram_ptr + tl.arange(0, _BINS)), 0)
        last_bin = tl.sum((before < waiting).to(tl.int32), 0)  # in which the k-th smallest stamp lies
        program = tl.program_id(0)
        for tile in tl.range(program * tiles_per_program, (program + 1) * tiles_per_program):
            slot = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
            stamp = tl.load(stamp_ptr + slot, mask=slot < slots, other=0)
            listed = (slot < slots) & (stamp_bin(stamp, least, slot < slots) <= last_bin)
            rank = tl.cumsum(listed.to(tl.int32), 0)
            first = tl.atomic_add(state_ptr + _CANDIDATES, tl.sum(listed.to(tl.int64), 0), sem="relaxed")
            tl.store(candidate_stamp_ptr + first + rank - 1, stamp, mask=listed)
            tl.store(candidate_slot_ptr + first + rank - 1, slot, mask=listed)


@triton.jit
def hand_out_kernel(
    state_ptr,  # [STATE_SIZE] int64
    candidate_stamp_ptr,  # [slots] int64
    candidate_slot_ptr,  # [slots] int32
    waiting_row_ptr,  # [rows] int32
    new_label_ptr,  # [rows] int64
    clock_ptr,  # one int64
    label_ptr,  # out [slots] int64, as are
    stamp_ptr,  # [slots] int64
    slot_of_class_ptr,  # [num_classes + 1] int32
    slot_of_row_ptr,  # [rows] int32
    BLOCK: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    waiting = tl.load(state_ptr + _WAITING)
    count = tl.where(waiting > 0, tl.load(state_ptr + _CANDIDATES), 0).to(tl.int32)
    clock = tl.load(clock_ptr)
    for first in tl.range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        own = first + tl.arange(0, BLOCK)
        stamp = tl.load(candidate_stamp_ptr + own, mask=own < count, other=_HIGHEST)
        older = tl.zeros([BLOCK], tl.int32)
        for start in tl.range(0, count, BLOCK_OTHERS):
            other = start + tl.arange(0, BLOCK_OTHERS)
            other_stamp = tl.load(candidate_stamp_ptr + other, mask=other < count, other=_HIGHEST)
            older += tl.sum((other_stamp[None, :] < stamp[:, None]).to(tl.int32), 1)
        taken = (own < count) & (older < waiting)
        slot = tl.load(candidate_slot_ptr + own, mask=taken, other=0)
        row = tl.load(waiting_row_ptr + older, mask=taken, other=0)
        label = tl.load(new_label_ptr + row, mask=taken, other=0)
        tl.store(label_ptr + slot, label, mask=taken)
        tl.store(stamp_ptr + slot, clock + row, mask=taken)
        tl.store(slot_of_class_ptr + label, slot, mask=taken)
        tl.store(slot_of_row_ptr + row, slot, mask=taken)


@triton.jit(do_not_specialize=["rows"])
def scatter_kernel(
    new_center_ptr,  # [rows, DIM] float32
    slot_of_row_ptr,  # [rows] int32
    center_ptr,  # out [slots, DIM]
    clock_ptr,  # in, out: one int64, or None: it stays
    rows,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_row_ptr + row).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = (column < DIM) & (slot >= 0)
    center = tl.load(new_center_ptr + row * DIM + column, mask=inside, other=0.0)
    tl.store(center_ptr + slot * DIM + column, center.to(center_ptr.dtype.element_ty), mask=inside)
    if clock_ptr is not None:  # noqa: SIM102 (a compile-time condition around one on the device)
        if row == 0:
            tl.store(clock_ptr, tl.load(clock_ptr) + rows)

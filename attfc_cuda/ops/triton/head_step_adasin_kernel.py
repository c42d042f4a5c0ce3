"""AdaSin's rows before and after the sweep: adasin_row_values and adasin_loss of csrc/head_step.h in Triton.

One program for all rows, since both need a mean over them in a fixed order; BLOCK_ROWS at a time, float32 sums. Bound
by latency.

An angle theta of cosine c is never made: with s = sqrt((1 - c)(1 + c)) = sin theta, and r = a - q pi in [0, pi),

    cos(theta + a) = (-1)^q (c cos r - s sin r),   sin(theta + a) = (-1)^q (s cos r + c sin r)
    floor((theta + a) / pi) = q + [c <= -cos r],   sin(theta / 2) = sqrt((1 - c) / 2)

In float32 (u = 2^-24) s is off by 2.5 u s at most: one rounding of each factor and of their product, halved by the
root, and its own. The polynomials of sine_and_cosine() are off by 3 u (what they leave out is below u / 4). So psi is
off by (3 + 1) u |c| + (3 + 2.5 + 1) u s + u |psi| <= (8 + |psi|) u for an exact a (the length of (4, 6.5) is 7.6), and
moves by its slope times a's error, 3 u |a| at most. A fold misjudged by rounding costs second order: psi is C1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sine_and_cosine(x):
    """sin x and cos x for |x| <= pi / 2 and a little beyond, by Taylor: to x^13 and x^14, below 1e-9 and 4e-10 off."""
    square = x * x
    sine = 1.0 - square * (1.0 / 156)
    sine = 1.0 - square * (1.0 / 110) * sine
    sine = 1.0 - square * (1.0 / 72) * sine
    sine = 1.0 - square * (1.0 / 42) * sine
    sine = 1.0 - square * (1.0 / 20) * sine
    sine = 1.0 - square * (1.0 / 6) * sine
    cosine = 1.0 - square * (1.0 / 182)
    cosine = 1.0 - square * (1.0 / 132) * cosine
    cosine = 1.0 - square * (1.0 / 90) * cosine
    cosine = 1.0 - square * (1.0 / 56) * cosine
    cosine = 1.0 - square * (1.0 / 30) * cosine
    cosine = 1.0 - square * (1.0 / 12) * cosine
    return x * sine, 1.0 - square * 0.5 * cosine


@triton.jit
def angle(cosine):
    """cos theta, sin theta, sin(theta / 2) and d theta / d cosine, theta that of margins/angles.py's angle(): in the
    last float32 step before +-1 it follows its chord, of less than 5e-4 rad, where two terms of each series are
    exact."""
    CHORD_SLOPE: tl.constexpr = 4096.0000406901052  # kChordSlope in csrc/margin_angle.h
    size = tl.abs(cosine)
    near_end = size > 0.99999988079071045  # kAngleEdge there
    inside = size <= 1
    sine = tl.sqrt_rn((1.0 - cosine) * (1.0 + cosine))
    from_end = tl.where(inside, CHORD_SLOPE * (1.0 - size), 0.0)
    at_end = 1.0 - 0.5 * from_end * from_end
    slope = tl.where(near_end, tl.where(inside, -CHORD_SLOPE, 0.0), -1.0 / sine)
    half_sine = tl.sqrt_rn(0.5 * (1.0 - tl.where(cosine < -1.0, -1.0, cosine)))
    half_sine = tl.where(near_end & (cosine > 0), 0.5 * from_end, half_sine)
    sine = tl.where(near_end, from_end - from_end * from_end * from_end * (1.0 / 6), sine)
    cosine = tl.where(near_end, tl.where(cosine > 0, at_end, -at_end), cosine)
    return cosine, sine, half_sine, slope


@triton.jit
def psi_of_sum(cosine, sine, shift):
    """psi(theta + shift) and its derivative by the angle."""
    turns = tl.floor(shift * 0.31830988618379067)
    # shift - (turns + 1/2) pi in two steps, the first of them exact; sin r = cos of it, cos r = -sin of it.
    middle = turns + 0.5
    sine_x, sine_of_shift = sine_and_cosine((shift - middle * 3.140625) - middle * 0.00096765358979323846)
    cosine_of_shift = -sine_x
    folds = turns + tl.where(cosine <= -cosine_of_shift, 1.0, 0.0)
    folds = tl.where(folds > 0, folds, 0.0)
    crossed = folds - turns
    sign = 1.0 - 2.0 * (crossed - 2.0 * tl.floor(0.5 * crossed))  # (-1)^(folds + turns)
    value = sign * (cosine * cosine_of_shift - sine * sine_of_shift) - 2.0 * folds
    return value, -sign * (sine * cosine_of_shift + cosine * sine_of_shift)


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1: 2 atanh z, z = x / (2 + x) <= 1/3, by its series to z^15, below 3e-9 of it off. Small
    losses keep their digits, which log(1 + x) loses."""
    z = x / (2.0 + x)
    square = z * z
    tail = square * (1.0 / 15) + 1.0 / 13
    tail = square * tail + 1.0 / 11
    tail = square * tail + 1.0 / 9
    tail = square * tail + 1.0 / 7
    tail = square * tail + 1.0 / 5
    tail = square * tail + 1.0 / 3
    return 2.0 * z + 2.0 * z * square * tail


@triton.jit(do_not_specialize=["rows"])
def adasin_row_values_kernel(
    label_ptr,  # [rows] int64
    cosine_ptr,  # [rows] float32
    t_ptr,  # in, out: one float32
    row_value_ptr,  # out [5, rows] float32, of RowValues
    rows,
    margin_rad,
    difficulty_weight,
    new_share,  # 1 - momentum
    scale,
    HALF_ANGLE: tl.constexpr,
    MOVE_T: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    t = tl.load(t_ptr)
    lane = tl.arange(0, BLOCK_ROWS)
    if MOVE_T:
        sums = tl.zeros([BLOCK_ROWS], tl.float32)
        counts = tl.zeros([BLOCK_ROWS], tl.int32)
        for first in tl.range(0, rows, BLOCK_ROWS):
            row = first + lane
            cosine = tl.load(cosine_ptr + row, mask=row < rows, other=0.0)
            label = tl.load(label_ptr + row, mask=row < rows, other=-1)
            counted = (label >= 0) & (tl.abs(cosine) < float("inf"))  # one bad image must not spoil t for good
            sums += tl.where(counted, cosine, 0.0)
            counts += counted.to(tl.int32)
        count = tl.sum(counts, 0)
        mean = tl.sum(sums, 0) / tl.maximum(count, 1).to(tl.float32)
        # torch.lerp's formula, as margins.base.move_average
        moved = tl.where(new_share < 0.5, t + new_share * (mean - t), mean - (mean - t) * (1.0 - new_share))
        t = tl.where(count > 0, moved, t)
        tl.store(t_ptr, t)
    out = row_value_ptr
    field = tl.cast(rows, tl.int64)
    for first in tl.range(0, rows, BLOCK_ROWS):
        row = first + lane
        inside = row < rows
        label = tl.load(label_ptr + row, mask=inside, other=-1)
        cosine, sine, half_sine, _ = angle(tl.load(cosine_ptr + row, mask=label >= 0, other=0.0))
        target, _ = psi_of_sum(cosine, sine, margin_rad + tl.zeros([BLOCK_ROWS], tl.float32))
        tl.store(out + row, scale * target, mask=inside)
        tl.store(out + field + row, target, mask=inside)
        tl.store(out + 2 * field + row, tl.zeros([BLOCK_ROWS], tl.float32), mask=inside)
        tl.store(out + 3 * field + row, t + difficulty_weight * (half_sine if HALF_ANGLE else sine), mask=inside)
        tl.store(out + 4 * field + row, tl.zeros([BLOCK_ROWS], tl.float32), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def adasin_loss_kernel(
    label_ptr,  # [rows] int64
    cosine_ptr,  # [rows] float32
    phi_ptr,  # [rows] float32, `lin` of RowValues
    lse_ptr,  # [rows] float32
    hard_count_ptr,  # [rows] int64
    loss_ptr,  # out: one float32, as are the next four [rows]
    row_loss_ptr,
    target_logit_ptr,
    lse_weight_ptr,
    cosine_weight_ptr,
    rows,
    margin_rad,
    scale,
    STRAIGHT_THROUGH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_ROWS)
    counts = tl.zeros([BLOCK_ROWS], tl.int32)
    for first in tl.range(0, rows, BLOCK_ROWS):
        counts += (tl.load(label_ptr + first + lane, mask=first + lane < rows, other=-1) >= 0).to(tl.int32)
    share = 1.0 / tl.maximum(tl.sum(counts, 0), 1).to(tl.float32)

    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    for first in tl.range(0, rows, BLOCK_ROWS):
        row = first + lane
        inside = row < rows
        live = tl.load(label_ptr + row, mask=inside, other=-1) >= 0
        cosine, sine, _, angle_slope = angle(tl.load(cosine_ptr + row, mask=live, other=0.0))
        is_hard = tl.load(hard_count_ptr + row, mask=live, other=0) > 0
        penalty = tl.load(phi_ptr + row, mask=is_hard, other=1.0)
        bent, bent_slope = psi_of_sum(cosine, sine, margin_rad * penalty)
        target = scale * bent
        excess = tl.load(lse_ptr + row, mask=live, other=float("-inf")) - tl.where(live, target, 0.0)
        # softplus and its derivative, without overflow on either side. A NaN stays one.
        tail = tl.exp(-tl.abs(excess))
        value = tl.where(excess < 0, 0.0, excess) + log1p(tail)
        weight = share * tl.where(excess > 0, 1.0, tail) / (1.0 + tail)
        slope = bent_slope * angle_slope
        if STRAIGHT_THROUGH:
            slope = tl.full([BLOCK_ROWS], 1.0, tl.float32)
        tl.store(target_logit_ptr + row, target, mask=inside)
        tl.store(row_loss_ptr + row, value, mask=inside)
        tl.store(lse_weight_ptr + row, weight, mask=inside)
        tl.store(cosine_weight_ptr + row, tl.where(live, -weight * scale * slope, 0.0), mask=inside)
        sums += tl.where(live, value, 0.0)
    tl.store(loss_ptr, tl.sum(sums, 0) * share)

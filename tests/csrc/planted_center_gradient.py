"""Faults for the centre gradient (faults.py)."""

from __future__ import annotations

from fault import LINE, Fault


def _fault(
    name: str,
    build: str,
    at: str,
    old: str,
    new: str,
    cases: tuple[str, ...] = ("shape.66x64",),
    unit: str = "center_gradient_d128",
    seeds: int = 2,
) -> Fault:
    return Fault(name, build, at, old, new, cases, unit, seeds, "center_gradient_test")


CENTER_GRADIENT_FAULTS = (
    # Fragments and swizzles.
    _fault("weights_not_transposed", "plain", "weights_transposed", "ldmatrix_x4_trans(", "ldmatrix_x4("),
    _fault(
        "weight_matrices_in_another_order",
        "plain",
        "weight_matrices",
        "lane % 8 + lane / 16 * 8, center = 16 * m + lane / 8 % 2 * 8",
        "lane % 8 + lane / 8 % 2 * 8, center = 16 * m + lane / 16 * 8",
    ),
    _fault(
        "weak_weight_swizzle", "plain", "weight_swizzle", "((row & 1) << 2 | (row & 2) | (row >> 2 & 1))", "(row & 7)"
    ),
    # Barriers and copies.
    _fault("no_barrier", "tsan", "center_gradient_barrier", LINE, "", ("shape.31x64",)),
    _fault("no_barrier_seen_by_schedules", "plain", "center_gradient_barrier", LINE, "", seeds=4),
    _fault("wait_too_weak", "plain", "center_gradient_wait", "wait<0>", "wait<1>"),
    _fault(
        "no_barrier_of_three_stages",
        "tsan",
        "center_gradient_midway_wait",
        LINE,
        "gpu::cp_async_commit(), gpu::cp_async_wait<0>();",
        ("d512compact.bf16",),
        "center_gradient_d512",
    ),
    _fault("no_barrier_before_the_dots_are_added", "plain", "dots_barrier", LINE, "", seeds=4),
    _fault("no_barrier_before_the_gradient_leaves", "tsan", "output_barrier", LINE, "", ("shape.31x64",)),
    # Double buffers.
    _fault("one_weight_buffer", "tsan", "center_gradient_weight_buffers", "& 1", "& 0"),
    _fault("one_flag_buffer", "tsan", "center_gradient_flag_buffers", "& 1", "& 0"),
    _fault("numbers_reused_early", "plain", "number_reuse", "kNumberTiles - 1", "1", ("shape.130x64",)),
    # Overruns.
    _fault("output_overrun", "asan", "center_gradient_output_end", LINE, "", ("shape.3x63",)),
    _fault(
        "center_label_overrun",
        "asan",
        "center_gradient_center_label_end",
        "first_center + center < p.num_centers ? p.center_labels[first_center + center] : -1",
        "p.center_labels[first_center + center]",
        ("shape.3x63",),
    ),
    _fault("label_overrun", "asan", "counted_row", "row < p.num_rows && ", "", unit="center_gradient"),
    # Masks.
    _fault("scale_of_empty_slots", "plain", "scale_of_empty_slot", LINE, ""),
    _fault(
        "empty_slots_have_mass", "plain", "filled_slot", "own_label[k + i] >= 0 && ", "", ("empty_slots_have_no_mass",)
    ),
    _fault("ignored_rows_counted", "plain", "filled_slot", " && own.label >= 0", "", ("ignored_rows_add_nothing",)),
    _fault("own_class_is_a_negative", "plain", "own_class", "same ? own.target_weight : ", ""),
    _fault(
        "empty_slots_read",
        "plain",
        "center_gradient_live_slot",
        "center_label(center) >= 0",
        "first_center + center < p.num_centers",
        ("empty_and_ignored_are_never_read",),
    ),
    _fault("ignored_rows_numbers_read", "plain", "counted_row", " && p.labels[row] >= 0", "", unit="center_gradient"),
    _fault(
        "rows_without_lse_counted",
        "plain",
        "row_with_negatives",
        "lse != -INFINITY",
        "true",
        ("lse_given_up",),
        "center_gradient",
    ),
    # What is left out.
    _fault(
        "own_class_left_out",
        "plain",
        "needed_block",
        " || (own_class && own.target_weight != 0)",
        "",
        ("omits_blocks_without_mass.bf16",),
    ),
    _fault(
        "nan_left_out",
        "plain",
        "needed_block",
        "!(mass <= softmax.omissible)",
        "mass > softmax.omissible",
        ("nan_is_not_silent",),
    ),
    _fault("mass_of_half_the_row", "plain", "row_mass", "kRowLanes", "kRowLanes / 2", ("omission_is_bounded",)),
    _fault(
        "flags_of_the_first_rows",
        "plain",
        "flags_of_the_step",
        "step * kStepWarps + ",
        "",
        ("omits_blocks_without_mass.bf16",),
    ),
    _fault(
        "tolerance_for_each_block",
        "plain",
        "tolerance_of_block",
        " / static_cast<float>(plan.blocks)",
        "",
        ("omission_is_bounded",),
        "center_gradient",
    ),
    # The result.
    _fault("not_projected", "plain", "projection", LINE, ""),
    _fault("projected_by_one_warp", "plain", "dots_of_all_warps", "other", "warp"),
    _fault("weight_scale_not_undone", "plain", "weight_unscale", "factor * unscale", "factor", ("weight_scale.fp16",)),
    _fault(
        "offset_of_32_bits",
        "plain",
        "center_gradient_offset",
        "(first + row) * p.embedding_stride",
        "static_cast<int>((first + row) * p.embedding_stride)",
        ("offsets_beyond_32_bits",),
    ),
)

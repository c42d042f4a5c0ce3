"""Faults for the centre gradient (faults.py)."""

from __future__ import annotations

from fault import Fault

KERNEL = "center_gradient_kernel.h"
LAYOUT = "center_gradient_layout.h"
LAUNCHER = "center_gradient.cu"
WAIT = "gpu::cp_async_wait<0>();\n    gpu::sync_block();"


def _fault(
    name: str,
    build: str,
    file: str,
    old: str,
    new: str,
    cases: tuple[str, ...] = ("shape.66x64",),
    unit: str = "center_gradient_d128",
    seeds: int = 2,
) -> Fault:
    return Fault(name, build, file, old, new, cases, unit, seeds, "center_gradient_test")


CENTER_GRADIENT_FAULTS = (
    # Fragments and swizzles.
    _fault("weights_not_transposed", "plain", KERNEL, "ldmatrix_x4_trans(weights", "ldmatrix_x4(weights"),
    _fault(
        "weight_matrices_in_another_order",
        "plain",
        KERNEL,
        "lane % 8 + lane / 16 * 8, center = 16 * m + lane / 8 % 2 * 8",
        "lane % 8 + lane / 8 % 2 * 8, center = 16 * m + lane / 16 * 8",
    ),
    _fault(
        "weak_weight_swizzle",
        "plain",
        "tile_layout.h",
        "((row & 1) << 2 | (row & 2) | (row >> 2 & 1))",
        "(row & 7)",
    ),
    # Barriers and copies.
    _fault("no_barrier", "tsan", KERNEL, WAIT, "gpu::cp_async_wait<0>();", ("shape.31x64",)),
    _fault("no_barrier_seen_by_schedules", "plain", KERNEL, WAIT, "gpu::cp_async_wait<0>();", seeds=4),
    _fault("wait_too_weak", "plain", KERNEL, "gpu::cp_async_wait<0>()", "gpu::cp_async_wait<1>()"),
    _fault(
        "no_barrier_of_three_stages",
        "tsan",
        KERNEL,
        "gpu::sync_block();\n        load_next(now);",
        "load_next(now);",
        ("d512compact.bf16",),
        "center_gradient_d512",
    ),
    _fault(
        "no_barrier_before_the_dots_are_added",
        "plain",
        KERNEL,
        "      gpu::sync_block();\n    }\n",
        "    }\n",
        seeds=4,
    ),
    _fault(
        "no_barrier_before_the_gradient_leaves",
        "tsan",
        KERNEL,
        "gpu::sync_block();\n    Element* out",
        "Element* out",
        ("shape.31x64",),
    ),
    # Double buffers.
    _fault("one_weight_buffer", "tsan", LAYOUT, "weights + (tile & 1) * kWeights", "weights"),
    _fault("one_flag_buffer", "tsan", LAYOUT, "warp_flags + (tile & 1) * Config::kWarps", "warp_flags"),
    _fault("numbers_reused_early", "plain", LAYOUT, "(tile & (kNumberTiles - 1))", "(tile & 1)", ("shape.130x64",)),
    # Overruns.
    _fault("output_overrun", "asan", KERNEL, "if (first_center + center >= p.centers) break;", "", ("shape.3x63",)),
    _fault(
        "center_label_overrun",
        "asan",
        KERNEL,
        "first_center + center < p.centers ? p.center_labels[first_center + center] : -1",
        "p.center_labels[first_center + center]",
        ("shape.3x63",),
    ),
    _fault(
        "label_overrun",
        "asan",
        LAUNCHER,
        "row < p.rows && p.labels[row] >= 0",
        "p.labels[row] >= 0",
        unit="center_gradient",
    ),
    # Masks.
    _fault("scale_of_empty_slots", "plain", KERNEL, "if (label < 0) return 0;", ""),
    _fault(
        "empty_slots_have_mass",
        "plain",
        KERNEL,
        "own_label[k + i] >= 0 && own.label >= 0",
        "own.label >= 0",
        ("empty_slots_have_no_mass",),
    ),
    _fault(
        "ignored_rows_counted",
        "plain",
        KERNEL,
        "own_label[k + i] >= 0 && own.label >= 0",
        "own_label[k + i] >= 0",
        ("ignored_rows_add_nothing",),
    ),
    _fault("own_class_is_a_negative", "plain", KERNEL, ": same ? own.target_weight :", ":"),
    _fault(
        "empty_slots_read",
        "plain",
        KERNEL,
        "const bool live = center_label(center) >= 0;",
        "const bool live = first_center + center < p.centers;",
        ("empty_and_ignored_are_never_read",),
    ),
    _fault(
        "ignored_rows_numbers_read",
        "plain",
        LAUNCHER,
        "row < p.rows && p.labels[row] >= 0",
        "row < p.rows",
        unit="center_gradient",
    ),
    _fault(
        "rows_without_lse_counted",
        "plain",
        LAUNCHER,
        "has_negatives = lse != -INFINITY",
        "has_negatives = true",
        ("lse_given_up",),
        "center_gradient",
    ),
    # What is left out.
    _fault(
        "own_class_left_out",
        "plain",
        KERNEL,
        " || (own_class && own.target_weight != 0)",
        "",
        ("omits_blocks_without_mass.bf16",),
    ),
    _fault(
        "nan_left_out",
        "plain",
        KERNEL,
        "!(mass <= softmax.omissible)",
        "mass > softmax.omissible",
        ("nan_is_not_silent",),
    ),
    _fault(
        "mass_of_half_the_row",
        "plain",
        KERNEL,
        "lanes < Config::kRowLanes;",
        "lanes < Config::kRowLanes / 2;",
        ("omission_is_bounded",),
    ),
    _fault(
        "flags_of_the_first_rows",
        "plain",
        KERNEL,
        "step * kStepWarps + other",
        "other",
        ("omits_blocks_without_mass.bf16",),
    ),
    _fault(
        "tolerance_for_each_block",
        "plain",
        LAUNCHER,
        " / static_cast<float>(plan.blocks)",
        "",
        ("omission_is_bounded",),
        "center_gradient",
    ),
    # The result.
    _fault("not_projected", "plain", KERNEL, "low -= along * unit.x;", ""),
    _fault(
        "projected_by_one_warp",
        "plain",
        KERNEL,
        "shared.cosines + other * kCenters",
        "shared.cosines + warp * kCenters",
    ),
    _fault("weight_scale_not_undone", "plain", KERNEL, "factor * unscale", "factor", ("weight_scale.fp16",)),
    _fault(
        "offset_of_32_bits",
        "plain",
        KERNEL,
        "(live ? (first + row) * p.embedding_stride + chunk * 8 : 0)",
        "(live ? static_cast<int>((first + row) * p.embedding_stride) + chunk * 8 : 0)",
        ("offsets_beyond_32_bits",),
    ),
)

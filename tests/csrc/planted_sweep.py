"""Faults for the sweep, its merge and the AdaSin rows (faults.py)."""

from __future__ import annotations

from fault import Fault

ADASIN = "adasin.cu"
KERNEL = "sweep_kernel.h"
LAYOUT = "sweep_layout.h"
PRODUCT = "tile_product.h"
TILES = "tile_layout.h"

SWEEP_FAULTS = (
    # Fragments and swizzles.
    Fault("fragment_row", "plain", PRODUCT, "a_row = row + lane % 16", "a_row = row + lane % 8", ("shape.66x31",)),
    Fault("fragment_k_half", "plain", PRODUCT, "b_half = lane / 8 % 2", "b_half = lane / 16"),
    Fault("fragment_not_transposed", "plain", PRODUCT, "ldmatrix_x4_trans(", "ldmatrix_x4("),
    Fault("accumulator_row", "plain", PRODUCT, "8 * half + lane / 4, column", "8 * half + lane % 8, column"),
    Fault("no_swizzle", "plain", TILES, "((chunk ^ (row & 7)) << 3)", "(chunk << 3)"),
    Fault("weak_logit_swizzle", "plain", TILES, "((row & 1) << 2 | (row & 2))", "(row & 2)"),
    # Barriers.
    Fault("no_barrier", "tsan", KERNEL, "gpu::cp_async_wait<0>();\n    gpu::sync_block();", "gpu::cp_async_wait<0>();"),
    Fault(
        "no_barrier_seen_by_schedules",
        "plain",
        KERNEL,
        "gpu::cp_async_wait<0>();\n    gpu::sync_block();",
        "gpu::cp_async_wait<0>();",
        seeds=4,
    ),
    Fault(
        "barrier_before_wait",
        "tsan",
        KERNEL,
        "gpu::cp_async_wait<0>();\n    gpu::sync_block();",
        "gpu::sync_block();\n    gpu::cp_async_wait<0>();",
    ),
    Fault(
        "no_barrier_of_three_stages",
        "tsan",
        KERNEL,
        "if constexpr (Config::kStages == 3) gpu::sync_block();",
        "",
        ("d512compact.bf16",),
        "sweep_d512",
    ),
    Fault(
        "divergent_barrier",
        "plain",
        KERNEL,
        "gpu::cp_async_wait<0>();\n    gpu::sync_block();",
        "gpu::cp_async_wait<0>();\n    if (warp != 1) gpu::sync_block();",
    ),
    Fault(
        "no_barrier_before_row_scale",
        "tsan",
        KERNEL,
        "1 / row_scale);\n        gpu::sync_block();",
        "1 / row_scale);",
        ("no_reference.fp16",),
    ),
    # Copies.
    Fault("wait_too_weak", "plain", KERNEL, "gpu::cp_async_wait<0>()", "gpu::cp_async_wait<1>()"),
    Fault("no_commit", "plain", KERNEL, "    gpu::cp_async_commit();\n", ""),
    Fault(
        "stage_reused_early",
        "tsan",
        KERNEL,
        "Element* target_tile = shared.center_tile(tile % Config::kStages)",
        "Element* target_tile = shared.center_tile((tile + 1) % Config::kStages)",
    ),
    Fault(
        "labels_reused_early",
        "tsan",
        LAYOUT,
        "center_labels + (static_cast<int>(tile) & (kLabelTiles - 1))",
        "center_labels + (static_cast<int>(tile) & (kLabelTiles / 2 - 1))",
    ),
    # Double buffers.
    Fault(
        "one_logit_buffer", "tsan", LAYOUT, "logits + (static_cast<int>(tile) & 1) * Config::kParts * kLogits", "logits"
    ),
    Fault("one_weight_buffer", "tsan", LAYOUT, "weights + (static_cast<int>(tile) & 1) * kLogits", "weights"),
    Fault(
        "one_flag_buffer", "tsan", LAYOUT, "warp_flags + (static_cast<int>(tile) & 1) * Config::kWarps", "warp_flags"
    ),
    # Warps.
    Fault(
        "half_warp_shuffle",
        "plain",
        KERNEL,
        "largest = row_max(largest);",
        "if (lane < 16) largest = row_max(largest);",
    ),
    Fault(
        "row_lanes_disagree",
        "plain",
        KERNEL,
        "return fmaxf(value, gpu::shuffle_xor(value, 2));",
        "return value;",
        ("reference_far_below.bf16",),
    ),
    Fault(
        "own_warps_flags_only",
        "plain",
        KERNEL,
        "load_shared(shared.flag_tile(tile) + other)",
        "load_shared(shared.flag_tile(tile) + warp)",
        ("omits_empty_tiles.bf16", "shape.66x31"),
    ),
    # Overruns.
    Fault(
        "shared_overrun", "plain", KERNEL, "index < kRows * Tile::kChunks", "index < (kRows + 64) * Tile::kChunks * 8"
    ),
    Fault("too_little_shared_memory", "plain", LAYOUT, "(8 + 4) * size_t{kLabelTiles}", "8 * size_t{kLabelTiles}"),
    Fault(
        "register_overrun",
        "asan",
        KERNEL,
        "for (int n = 0; n < 2 * kGradPairs; ++n) {\n        gradient[m][n][0] *= upper;",
        "for (int n = 0; n <= 2 * kGradPairs; ++n) {\n        gradient[m][n][0] *= upper;",
        ("reference_far_below.bf16",),
    ),
    Fault("output_overrun", "asan", KERNEL, "if (out_row >= p.rows) continue;", ""),
    Fault("label_overrun", "asan", KERNEL, "row < p.rows ? p.labels[row] : -1", "p.labels[row]"),
    Fault("center_label_overrun", "asan", KERNEL, "tile < tiles && center < p.centers", "tile < tiles"),
    Fault(
        "offset_of_32_bits",
        "plain",
        KERNEL,
        "(live ? (first + row) * p.center_stride + chunk * 8 : 0)",
        "(live ? static_cast<int>((first + row) * p.center_stride) + chunk * 8 : 0)",
        ("offsets_beyond_32_bits",),
    ),
    # Masks.
    Fault(
        "empty_slots_counted",
        "plain",
        KERNEL,
        "label >= 0 && label != row_label",
        "label != row_label",
        ("scale_1.bf16",),
    ),
    Fault("own_class_counted", "plain", KERNEL, "label >= 0 && label != row_label", "label >= 0"),
    Fault(
        "empty_slots_read",
        "plain",
        KERNEL,
        "const bool live = gpu::load_shared(center_label + row) >= 0;",
        "const bool live = gpu::load_shared(center_label + row) >= 0 || first + row < p.centers;",
    ),
    Fault(
        "ignored_rows_numbers_read",
        "plain",
        KERNEL,
        "const bool live = row_label >= 0;",
        "const bool live = row < p.rows;",
        ("all_rows_ignored.bf16",),
    ),
    Fault("ignored_rows_counted", "plain", KERNEL, " && row_label >= 0;", ";", ("all_rows_ignored.bf16",)),
    # center_scale.
    Fault("weights_without_scale", "plain", KERNEL, "slope[i] * component(by, i - k)", "slope[i]", ("scaled.bf16",)),
    Fault("scale_of_empty_slots", "plain", KERNEL, "(valid >> i & 1) != 0 ? slope", "true ? slope", ("scaled.bf16",)),
    Fault("scale_out_of_range", "plain", KERNEL, "largest += logf(widest);", "", ("scaled.short_centers.fp16",)),
    # Blocks.
    Fault(
        "two_blocks_on_the_same_rows",
        "tsan",
        KERNEL,
        "static_cast<int64_t>(gpu::block_index_x()) * kRows",
        "static_cast<int64_t>(gpu::block_index_x() / 2) * kRows",
        ("shape.66x31",),
    ),
    Fault(
        "split_not_merged",
        "plain",
        "merge.cu",
        "split < p.splits;",
        "split < p.splits - 1;",
        ("splits.uneven",),
        "merge",
    ),
    Fault(
        "split_order_reversed_scale",
        "plain",
        "merge.cu",
        "gradient.x * keep + more.x * add",
        "gradient.x * add + more.x * keep",
        ("splits.uneven",),
        "merge",
    ),
    # Sums.
    Fault(
        "reference_never_moves",
        "plain",
        KERNEL,
        "      move_reference(part, largest);\n",
        "",
        ("reference_far_below.bf16",),
    ),
    Fault(
        "gradient_not_moved",
        "plain",
        KERNEL,
        "if ((flags & kMoved) != 0) scale_gradient(shared.factor_tile(tile));",
        "",
        ("scale_1000_no_reference.fp16",),
    ),
    Fault(
        "moments_not_moved",
        "plain",
        "../partial_lse.h",
        "  part.moment_quad *= factor;\n",
        "",
        ("scale_1000_no_reference.fp16",),
    ),
    Fault(
        "row_scale_not_undone",
        "plain",
        KERNEL,
        "        scale_gradient(shared.factor_tile(0));\n",
        "",
        ("no_reference.fp16",),
    ),
    Fault(
        "omitted_not_counted",
        "plain",
        KERNEL,
        "part.omitted += pending_mass",
        "part.omitted += 0",
        ("omits_empty_tiles.bf16",),
    ),
    Fault(
        "target_mass_for_each_split",
        "plain",
        KERNEL,
        " / static_cast<float>(p.splits)",
        "",
        ("omission_is_accounted_over_splits.bf16",),
    ),
    Fault(
        "omits_too_much",
        "plain",
        "../partial_lse.h",
        "return omitted + tile_mass <=",
        "return tile_mass <=",
        ("omission_is_accounted_over_splits.bf16",),
    ),
    Fault(
        "nothing_omitted", "plain", KERNEL, "(any_needed ? kNeeded : 0u)", "kNeeded", ("omission_includes_the_target",)
    ),
    # The rows around the sweep.
    Fault(
        "mean_without_barrier",
        "tsan",
        ADASIN,
        "gpu::sync_block();\n    value = count = 0;",
        "value = count = 0;",
        ("one_row",),
        "adasin",
        test="adasin_test",
    ),
    Fault(
        "row_lanes_not_summed",
        "plain",
        ADASIN,
        "const float norm = sqrtf(warp_sum(square));",
        "const float norm = sqrtf(square);",
        ("float32",),
        "adasin",
        test="adasin_test",
    ),
    Fault(
        "ignored_rows_in_the_mean",
        "plain",
        ADASIN,
        "if (p.labels[row] < 0 || !(fabsf(cosine) < INFINITY)) continue;",
        "",
        ("float32",),
        "adasin",
        test="adasin_test",
    ),
    Fault(
        "normalisation_not_differentiated",
        "plain",
        ADASIN,
        "by_cosine * center[d] - along * gpu::to_float(x[d]) * inverse;",
        "by_cosine * center[d];",
        ("float32",),
        "adasin",
        test="adasin_test",
    ),
    Fault(
        "t_moves_in_eval", "plain", ADASIN, "if (p.move_t) {", "if (true) {", ("eval",), "adasin", test="adasin_test"
    ),
    Fault(
        "psi_turns_back_up",
        "plain",
        "adasin_angle.h",
        "sign * cosf(a) - 2 * folds",
        "cosf(a)",
        ("wide_margin",),
        "adasin",
        test="adasin_test",
    ),
)

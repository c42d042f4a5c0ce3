"""Faults for the sweep and its merge (faults.py)."""

from __future__ import annotations

from fault import LINE, Fault

SWEEP_FAULTS = (
    # Fragments and swizzles.
    Fault(
        "fragment_row", "plain", "fragment_row", "a_row = row + lane % 16", "a_row = row + lane % 8", ("shape.66x31",)
    ),
    Fault("fragment_k_half", "plain", "fragment_k_half", "b_half = lane / 8 % 2", "b_half = lane / 16"),
    Fault("fragment_not_transposed", "plain", "fragment_transposed", "ldmatrix_x4_trans(", "ldmatrix_x4("),
    Fault("accumulator_row", "plain", "accumulator_row", "8 * half + lane / 4, column", "8 * half + lane % 8, column"),
    Fault("no_swizzle", "plain", "operand_swizzle", "((chunk ^ (row & 7)) << 3)", "(chunk << 3)"),
    Fault("weak_logit_swizzle", "plain", "logit_swizzle", "((row & 1) << 2 | (row & 2))", "(row & 2)"),
    # Barriers.
    Fault("no_barrier", "tsan", "sweep_barrier", LINE, ""),
    Fault("no_barrier_seen_by_schedules", "plain", "sweep_barrier", LINE, "", seeds=4),
    Fault(
        "barrier_before_wait",
        "tsan",
        "sweep_wait",
        LINE,
        "gpu::sync_block();\n    gpu::cp_async_wait<0>();",
        also=(("sweep_barrier", LINE, ""),),
    ),
    Fault(
        "no_barrier_of_three_stages",
        "tsan",
        "sweep_midway_wait",
        LINE,
        "gpu::cp_async_commit(), gpu::cp_async_wait<0>();",
        ("d512compact.bf16",),
        "sweep_d512",
    ),
    Fault(
        "no_second_barrier_of_three_stages",
        "tsan",
        "sweep_midway_end",
        LINE,
        "",
        ("d512compact.bf16",),
        "sweep_d512",
    ),
    Fault(
        "copies_have_half_an_interval",
        "plain",
        "sweep_midway_wait",
        LINE,
        "gpu::sync_block();",
        ("copies_land_over_an_interval.3_stages_compact",),
        "sweep_d512",
        also=(("sweep_midway_end", LINE, "wait_for_copies();"),),
    ),
    Fault("divergent_barrier", "plain", "sweep_barrier", LINE, "if (warp != 1) gpu::sync_block();"),
    Fault("no_barrier_before_row_scale", "tsan", "row_scale_barrier", LINE, "", ("no_target_logit.fp16",)),
    # Copies.
    Fault("wait_too_weak", "plain", "sweep_wait", "wait<0>", "wait<1>"),
    Fault("no_commit", "plain", "sweep_commit", LINE, ""),
    Fault("stage_reused_early", "tsan", "stage_reuse", "tile % Config", "(tile + 1) % Config"),
    Fault("labels_reused_early", "tsan", "label_reuse", "kLabelTiles - 1", "kLabelTiles / 2 - 1"),
    # Double buffers.
    Fault("one_logit_buffer", "tsan", "logit_buffers", "& 1", "& 0"),
    Fault("one_weight_buffer", "tsan", "sweep_weight_buffers", "& 1", "& 0"),
    Fault("one_flag_buffer", "tsan", "sweep_flag_buffers", "& 1", "& 0"),
    # Warps.
    Fault("half_warp_shuffle", "plain", "row_shuffle", LINE, "if (lane < 16) largest = row_max(largest);"),
    Fault("row_lanes_disagree", "plain", "row_lanes_agree", LINE, "return value;", ("target_logit_far_below.bf16",)),
    Fault(
        "own_warps_flags_only",
        "plain",
        "flags_of_all_warps",
        "load_shared(shared.flag_tile(tile) + other)",
        "load_shared(shared.flag_tile(tile) + warp)",
        ("omits_empty_tiles.bf16", "shape.66x31"),
    ),
    # Overruns.
    Fault(
        "shared_overrun",
        "plain",
        "embedding_copy",
        "index < kRows * Tile::kChunks",
        "index < (kRows + 64) * Tile::kChunks * 8",
    ),
    Fault("too_little_shared_memory", "plain", "shared_memory_of_labels", "(8 + 4)", "8"),
    Fault("register_overrun", "asan", "gradient_registers", "n < 2", "n <= 2", ("target_logit_far_below.bf16",)),
    Fault("output_overrun", "asan", "sweep_output_end", LINE, ""),
    Fault("label_overrun", "asan", "sweep_label_end", "row < p.num_rows ? p.labels[row] : -1", "p.labels[row]"),
    Fault(
        "center_label_overrun",
        "asan",
        "sweep_center_label_end",
        "tile < tiles && center < p.num_centers",
        "tile < tiles",
    ),
    Fault(
        "offset_of_32_bits",
        "plain",
        "sweep_offset",
        "(first + row) * p.center_stride",
        "static_cast<int>((first + row) * p.center_stride)",
        ("offsets_beyond_32_bits",),
    ),
    # Masks.
    Fault("empty_slots_counted", "plain", "valid_negative", "label >= 0 && label", "label", ("scale_1.bf16",)),
    Fault("own_class_counted", "plain", "valid_negative", " && label != row_label", ""),
    Fault("empty_slots_read", "plain", "sweep_live_slot", ">= 0", ">= 0 || first + row < p.num_centers"),
    Fault("ignored_rows_numbers_read", "plain", "ignored_row", "row_label >= 0", "true", ("all_rows_ignored.bf16",)),
    Fault("ignored_rows_counted", "plain", "valid_negative", " && row_label >= 0", "", ("all_rows_ignored.bf16",)),
    # center_scale.
    Fault("weights_without_scale", "plain", "scaled_weight", " * component(by, i - k)", "", ("scaled.bf16",)),
    Fault("scale_of_empty_slots", "plain", "scaled_weight", "(valid >> i & 1) != 0", "true", ("scaled.bf16",)),
    Fault("scale_out_of_range", "plain", "scale_of_reference", LINE, "", ("scaled.short_centers.fp16",)),
    # Blocks.
    Fault(
        "two_blocks_on_the_same_rows", "tsan", "block_rows", "block_index_x()", "block_index_x() / 2", ("shape.66x31",)
    ),
    Fault(
        "split_not_merged",
        "plain",
        "merged_splits",
        "split < p.splits;",
        "split < p.splits - 1;",
        ("splits.uneven",),
        "merge",
    ),
    Fault(
        "splits_not_moved", "plain", "merged_factor", "move_factor(", "1 + 0 * move_factor(", ("splits.moved",), "merge"
    ),
    Fault("lanes_not_merged", "plain", "merged_lanes", "lanes > 0", "lanes > 1", ("splits.uneven",), "merge"),
    Fault("no_barrier_in_merge", "tsan", "merge_barrier", LINE, "", ("splits.uneven",), "merge"),
    # Sums.
    Fault("reference_never_moves", "plain", "reference_moves", LINE, "", ("target_logit_far_below.bf16",)),
    Fault("gradient_not_moved", "plain", "gradient_moves", LINE, "", ("scale_1000_no_target_logit.fp16",)),
    Fault("moments_not_moved", "plain", "moments_move", LINE, "", ("scale_1000_no_target_logit.fp16",)),
    Fault("row_scale_not_undone", "plain", "row_scale_undone", LINE, "", ("no_target_logit.fp16",)),
    Fault("omitted_not_counted", "plain", "omitted_mass", "+= pending_mass", "+= 0", ("omits_empty_tiles.bf16",)),
    Fault(
        "target_mass_for_each_split",
        "plain",
        "target_mass_of_split",
        " / static_cast<float>(p.splits)",
        "",
        ("omission_is_accounted_over_splits.bf16",),
    ),
    Fault(
        "omits_too_much",
        "plain",
        "omitted_so_far",
        "omitted + tile_mass",
        "tile_mass",
        ("omission_is_accounted_over_splits.bf16",),
    ),
    Fault(
        "nothing_omitted",
        "plain",
        "needed_tile",
        "(any_needed ? kNeeded : 0u)",
        "kNeeded",
        ("omission_includes_the_target",),
    ),
)

"""Faults for the sweep by wgmma on sm_90a (faults.py)."""

from __future__ import annotations

from fault import LINE, Fault


def _fault(
    name: str,
    build: str,
    at: str,
    old: str,
    new: str,
    cases: tuple[str, ...] = ("tiles.9.bf16",),
    seeds: int = 2,
    test: str = "sweep_sm90_test",
) -> Fault:
    return Fault(name, build, at, old, new, cases, "sweep_sm90", seeds, test)


SWEEP_SM90_FAULTS = (
    # Barriers: who may use them, parities, arrivals, bytes.
    _fault("no_barrier_after_init", "plain", "sm90_init_barrier", LINE, "", seeds=4),
    _fault("half_free_too_soon", "plain", "sm90_empty_arrivals", "kWarps", "kWarps - 1", seeds=4),
    _fault("half_waited_for_by_the_wrong_parity", "plain", "sm90_empty_wait", "parity_of(half) ^ 1", "parity_of(half)"),
    _fault("half_not_waited_for", "plain", "sm90_empty_wait", LINE, ""),
    _fault("bytes_off_by_16", "plain", "sm90_half_bytes", "kCenterBytes", "kCenterBytes - 16"),
    _fault("copy_not_waited_for", "plain", "sm90_full_wait", LINE, "", ("no_empty_slots.bf16",)),
    _fault("embeddings_not_waited_for", "plain", "sm90_embeddings_wait", LINE, ""),
    _fault("numbers_not_waited_for", "tsan", "sm90_numbers_full", LINE, ""),
    _fault("numbers_overwritten", "tsan", "sm90_numbers_wait", LINE, ""),
    _fault("nobody_meets", "plain", "sm90_meet", LINE, "", seeds=4),
    _fault("sums_of_the_other_not_waited_for", "tsan", "sm90_halves_wait", LINE, ""),
    # Empty slots.
    _fault("empty_slots_not_zeroed", "plain", "sm90_zeros", LINE, "", ("mostly_empty.bf16",)),
    _fault("zeros_before_the_copy_landed", "plain", "sm90_zeros_wait", LINE, "", ("mostly_empty.bf16",), 4),
    _fault("zeros_not_fenced", "plain", "sm90_zeros_fence", LINE, "", ("mostly_empty.bf16",)),
    # Halves and products.
    _fault("half_released_while_read", "plain", "sm90_wait_of_release", "wait<1>", "wait<2>", ("no_empty",), 16),
    _fault("another_half_released", "plain", "sm90_released_half", "2 * tile", "(2 * tile + 2)", seeds=4),
    _fault("wait_too_weak_for_the_logits", "plain", "sm90_wait_of_logits", "wait<0>", "wait<1>"),
    _fault("no_fence_before_logits", "plain", "sm90_logits_fence", LINE, ""),
    _fault("no_fence_before_the_gradient", "plain", "sm90_gradient_fence", LINE, ""),
    _fault("weights_not_fenced", "plain", "sm90_weights_fence", LINE, ""),
    _fault("one_buffer_of_weights", "plain", "sm90_weight_buffers", "tile % 2", "0", seeds=4),
    _fault("logit_columns_too_close", "plain", "sm90_logit_operands", "32 * k", "16 * k"),
    _fault("gradient_rows_too_close", "plain", "sm90_gradient_operands", "2048 * k", "1024 * k"),
    _fault("weights_not_swizzled", "plain", "sm90_weight_swizzle", "(chunk ^ line % 8)", "chunk"),
    _fault("columns_of_one_tile", "plain", "rows_layout", "static_cast<uint32_t>(tile_bytes)", "1024u"),
    # Sums, references, the tolerance.
    _fault("accumulator_rows", "plain", "sm90_accumulator_rows", "2 * upper", "upper", ("shape.66x130",)),
    _fault("own_class_counted", "plain", "sm90_valid_negative", " && own != row_label", ""),
    _fault("weight_not_scaled", "plain", "sm90_scaled_weight", LINE, "", ("scaled.bf16",)),
    _fault("weight_scale_not_undone", "plain", "sm90_scale_undone", "1 /", "0 +", ("tiles.9.fp16",)),
    _fault("gradient_not_moved", "plain", "sm90_gradient_moves", LINE, "", ("scale_1000.no_target.fp16",)),
    _fault("counted_twice", "plain", "sm90_counted_once", "!stays[0]", "true", ("no_target.fp16",)),
    _fault("only_own_wishes", "plain", "sm90_wishes", "1 - group", "group", ("scale_1000.no_target.fp16",)),
    _fault("omitted_not_reported", "plain", "sm90_omitted", LINE, "", ("omits_tiles",)),
    _fault("target_counted_by_each", "plain", "sm90_target_share", "p.splits * kThreadsOfRow", "1", ("omission_is",)),
    _fault("label_overrun", "asan", "sm90_center_end", "center < p.num_centers", "true"),
    _fault("output_overrun", "asan", "sm90_output_end", LINE, ""),
    _fault(
        "half_of_a_live_tile", "plain", "sm90_live_halves", "half % kHalves * kSm90Half", "0", ("d256.bf16",), 2,
        "two_pass_test",
    ),
)  # fmt: skip

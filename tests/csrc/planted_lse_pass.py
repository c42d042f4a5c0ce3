"""Faults for the lse pass on sm_90a (faults.py)."""

from __future__ import annotations

from fault import LINE, Fault


def _fault(
    name: str,
    build: str,
    at: str,
    old: str,
    new: str,
    cases: tuple[str, ...] = ("tiles.9",),
    seeds: int = 2,
) -> Fault:
    return Fault(name, build, at, old, new, cases, "lse_pass", seeds, "lse_pass_test")


LSE_PASS_FAULTS = (
    # Barriers: who may use them, parities, arrivals, bytes.
    _fault("no_init_fence", "plain", "lse_init_fence", LINE, ""),
    _fault("no_barrier_after_init", "plain", "lse_init_barrier", LINE, "", seeds=4),
    _fault("stage_free_too_soon", "plain", "lse_empty_arrivals", "kWarps", "kWarps - 1", seeds=4),
    _fault("stage_waited_for_by_the_wrong_parity", "plain", "lse_empty_wait", "place.parity ^ 1", "place.parity"),
    _fault("stage_not_waited_for", "plain", "lse_empty_wait", LINE, ""),
    _fault("parity_never_flips", "plain", "lse_parity_flips", "parity ^= 1", "parity ^= 0"),
    _fault("bytes_off_by_16", "plain", "lse_step_bytes", "kStepBytes", "kStepBytes - 16"),
    _fault("copy_waited_for_by_the_wrong_parity", "plain", "lse_full_wait", "place.parity", "place.parity ^ 1"),
    _fault("copy_not_waited_for", "plain", "lse_full_wait", LINE, ""),
    _fault("copy_waited_for_by_one_lane", "tsan", "lse_full_wait", "gpu::", "if (lane == 1) gpu::"),
    _fault("embeddings_not_waited_for", "plain", "lse_embeddings_wait", LINE, "", ("d512.bf16",)),
    _fault("numbers_not_waited_for", "tsan", "lse_numbers_full", "part == 0", "part < 0"),
    _fault("numbers_overwritten", "tsan", "lse_numbers_wait", LINE, ""),
    # Stages and products.
    _fault("wrong_columns", "plain", "lse_step_copy", "step * gpu::kTileColumns", "(step ^ 1) * gpu::kTileColumns"),
    _fault("stage_released_while_read", "plain", "lse_released_stage", LINE, "const int other = place.stage;"),
    _fault("wait_too_weak_for_the_stage", "plain", "lse_wait_of_stage", "wait<1>", "wait<2>"),
    _fault("wait_too_weak_for_the_sums", "plain", "lse_wait_of_sums", "wait<1>", "wait<2>"),
    _fault("no_fence_before_products", "plain", "lse_wgmma_fence", LINE, ""),
    _fault("sums_start_anew", "plain", "lse_accumulates", "Element, true", "Element, false"),
    _fault("another_swizzle", "plain", "operand_layout", "uint64_t{1} << 62", "uint64_t{2} << 62"),
    _fault("rows_too_close", "plain", "operand_layout", "1024 >> 4", "512 >> 4"),
    _fault("columns_too_close", "plain", "lse_operands", "32 * k", "16 * k"),
    _fault("registers_not_given_up", "plain", "lse_lower", LINE, ""),
    # Sums.
    _fault("accumulator_rows", "plain", "lse_accumulator_rows", "2 * half", "half", ("shape.127x128",)),
    _fault("own_class_counted", "plain", "lse_valid_negative", " && labels[i] != row.label", ""),
    _fault("tile_mass_not_moved", "plain", "lse_tile_mass_moves", LINE, "", ("no_target.bf16",)),
    _fault("label_overrun", "asan", "lse_center_end", "center < p.sweep.num_centers", "true"),
)

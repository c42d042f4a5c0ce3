"""Faults for the list of live tiles and the gradient pass over it (faults.py)."""

from __future__ import annotations

from fault import LINE, Fault


def _fault(name: str, build: str, at: str, old: str, new: str, cases: tuple[str, ...], unit: str) -> Fault:
    return Fault(name, build, at, old, new, cases, unit, 2, "two_pass_test")


TWO_PASS_FAULTS = (
    _fault(
        "tolerance_for_each_tile",
        "plain",
        "live_share",
        " / static_cast<float>(p.tiles)",
        "",
        ("omission_has_no_target",),
        "live_tiles",
    ),
    _fault(
        "share_of_the_negatives", "plain", "live_target_share", "/ (1 + ", "* (1 + ", ("omission_is",), "live_tiles"
    ),
    _fault("no_barrier_before_flags", "tsan", "live_flags_barrier", LINE, "", ("splits.bf16",), "live_tiles"),
    _fault(
        "first_part_of_a_tile_only",
        "plain",
        "live_tile_parts",
        "tile % kParts * kTile",
        "0 * kTile",
        ("shape.66x130",),
        "sweep_d128",
    ),
)

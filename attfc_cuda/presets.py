"""What heads start with: two sets of values, our own and what the papers print, and the margin of each head.

`AttFC(preset=...)`, `attfc train --preset` and the defaults of both take them from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from attfc_cuda._error import close_match, error


@dataclass(frozen=True)
class Preset:
    """Starting values of a head and its margin; each can be overridden by the argument or flag of its name.

    Attributes:
        scale: Factor from a cosine to a logit.
        m: Margin of those that add one to the angle or the cosine (`ADDITIVE_MARGINS`), in radians or as a cosine;
            None: the one that the margin's own class starts with, as published.
        policy: Of the container, see `DynamicClassContainer`.
        enqueue: As for `AttFC`, as is class_code.
        class_code: Length of the class codes.
    """

    scale: float
    m: float | None
    policy: str
    enqueue: str
    class_code: float


DEFAULT = Preset(scale=24.0, m=0.2, policy="refresh", enqueue="before", class_code=1.0)
"""Our choice: learns at once, in runs of minutes as of days (docs/learning.md)."""
PUBLISHED = Preset(scale=64.0, m=None, policy="fifo", enqueue="after", class_code=0.0)
"""As in arXiv 2503.06839 and 2503.03528: stays near chance for most of a short run."""
PRESETS = {"default": DEFAULT, "published": PUBLISHED}

MARGIN_OF_HEAD = {"attfc": "adasin", "fc": "arcface", "partial_fc": "arcface"}
"""The margin that each `--head` starts with. Our choice: trained centres suffered from AdaSin's push on hard negatives
on thousands of drawn identities (docs/learning.md)."""

ADDITIVE_MARGINS = ("adasin", "arcface", "cosface", "mvsoftmax", "curricularface")
"""Margins, by name, whose m is that of a preset."""


def named(name: str, function: str) -> Preset:
    """The preset of that name.

    Args:
        name: One of `PRESETS`.
        function: That asks, for the error.

    Raises:
        ValueError: For another name.
    """
    if name not in PRESETS:
        rule = f"be one of {', '.join(PRESETS)}"
        raise error(function, "preset", rule, repr(name), close_match(name, PRESETS))
    return PRESETS[name]

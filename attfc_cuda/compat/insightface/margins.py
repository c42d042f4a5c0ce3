"""InsightFace's margin losses (its `losses.py`) as margins of ours."""

from __future__ import annotations

import math
import warnings
from typing import Any

from attfc_cuda._check import error
from attfc_cuda.margins import ArcFace, CombinedMargin, CosFace, Margin


def as_margin(margin_loss: Any, gradient: str = "straight_through") -> Margin:
    """The margin of ours that lowers and scales the target as `margin_loss` does.

    m1 = 1, m3 = 0: T = cos(theta + m2). m3 > 0: T = cos theta - m3, and m1, m2 have no effect, as in InsightFace (a
    UserWarning says so; for all three pass `CombinedMargin(m1, m2, m3)` of ours). m1 other than 1 with m3 = 0, which
    InsightFace refuses: T = cos(m1 theta + m2). A threshold of 0 filters nothing.

    It differs where theta + m2 passes pi: InsightFace's T turns back up, ours keeps falling (`margins.psi`). With
    m2 = 0.5 that concerns a positive at more than 151 degrees from its centre.

    Args:
        margin_loss: InsightFace's `CombinedMarginLoss(s, m1, m2, m3, interclass_filtering_threshold)`,
            `ArcFace(s, margin)` or `CosFace(s, m)`, known by their attributes; it is read, not called. A
            `margins.Margin` is returned as it is, so that any margin of ours goes where InsightFace takes its own.
        gradient: how the gradient passes the margin. InsightFace's `CombinedMarginLoss` computes angles and margin
            without gradient and is differentiated as if it were the identity: "straight_through". Copies of it that
            compute the target with sqrt(1 - c^2) are differentiated through: "exact".

    Raises:
        TypeError: for anything else.
        ValueError: for a number out of range.
    """
    if isinstance(margin_loss, Margin):
        return margin_loss
    given: dict[str, Any] = {
        name: getattr(margin_loss, name, None) for name in ("s", "scale", "m", "m1", "m2", "m3", "cos_m", "sin_m")
    }
    threshold = getattr(margin_loss, "interclass_filtering_threshold", 0)
    scale = given["s"] if given["s"] is not None else given["scale"]
    base = {"scale": scale, "gradient": gradient, "interclass_filter": threshold if threshold else None}
    if scale is not None and None not in (given["m1"], given["m2"], given["m3"]):
        return _combined(given["m1"], given["m2"], given["m3"], base)
    if scale is not None and given["m"] is not None:
        return CosFace(given["m"], **base)
    if scale is not None and None not in (given["cos_m"], given["sin_m"]):
        return ArcFace(math.atan2(given["sin_m"], given["cos_m"]), **base)
    raise error(
        "as_margin",
        "margin_loss",
        "be InsightFace's CombinedMarginLoss, ArcFace or CosFace, or a margins.Margin",
        repr(margin_loss),
        "see attfc_cuda.margins for the margins there are",
        kind=TypeError,
    )


def _combined(m1: float, m2: float, m3: float, base: dict[str, Any]) -> Margin:
    if m3 > 0:
        if (m1, m2) != (1, 0):
            warnings.warn(
                f"InsightFace's CombinedMarginLoss with m3 = {m3} is CosFace: m1 = {m1} and m2 = {m2} have no effect; "
                f"for all three pass attfc_cuda.CombinedMargin({m1}, {m2}, {m3})",
                stacklevel=3,
            )
        return CosFace(m3, **base)
    if m1 == 1 and m3 == 0:
        return ArcFace(m2, **base)
    return CombinedMargin(m1, m2, m3, **base)

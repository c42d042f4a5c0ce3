"""The threshold at a false accept rate, out of the JSON that a verification has written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from attfc_cuda._check import error
from attfc_cuda.evaluation.fingerprint import PLAIN

KEY = "at_far"


def report_of(folder: Path) -> Path:
    """The one verification report in `folder` or in its `verify` folder.

    Raises:
        ValueError: where there is none, or more than one: then the user has to say which.
    """
    place = folder / "verify" if (folder / "verify").is_dir() else folder
    found = [path for path in sorted(place.glob("*.json")) if isinstance(_read(path).get(KEY), dict)]
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        remedy = "name it with --report" if found else "run `attfc verify` on the checkpoint first, or give --threshold"
        raise error("compare", "report", f"be the one report with thresholds in {place}", got, remedy)
    return found[0]


def threshold_at(report: Path, far: float, embedding: str, network: str) -> float:
    """The threshold that `report` gives for the false accept rate `far`.

    Args:
        report: JSON with `{"at_far": {"0.001": {"threshold": 0.31}}}`; in "embedding" and "network" what it is for, if
            it says so.
        far: the rate.
        embedding: what is compared, see `fingerprint.embedding_kind`: each kind has thresholds of its own.
        network: fingerprint of the network that embeds.

    Raises:
        ValueError: naming the rates that it does give, or what its thresholds are for.
    """
    plain = _read(report)
    rates = plain.get(KEY)
    if not isinstance(rates, dict):
        raise error("compare", "report", f"hold {KEY}", report, "run `attfc verify` on the checkpoint")
    found = plain.get("embedding", embedding)
    if found != embedding:
        remedy = "add --no-flip" if found == PLAIN else "run `attfc verify` with the same --flip or --no-flip"
        raise error("compare", "report", f"be of embeddings of the kind {embedding!r}", repr(found), remedy)
    if (found := plain.get("network", network)) != network:
        remedy = "run `attfc verify` on this checkpoint"
        raise error("compare", "report", f"be of this network, {network}", f"{found} in {report}", remedy)
    return at_rate(rates, far, report)


def at_rate(rates: dict[str, Any], far: float, source: Path) -> float:
    """The threshold at the false accept rate `far` among operating points by rate.

    Args:
        rates: rate (as text) -> what `attfc verify` wrote of its operating point.
        far: the rate.
        source: the file that they are from.

    Raises:
        ValueError: naming the rates that there are.
    """
    for name, entry in rates.items():
        value = entry.get("threshold") if isinstance(entry, dict) else None
        if math.isclose(float(name), far, rel_tol=1e-9) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    raise error("compare", "far", f"be one of {', '.join(rates) or 'none'}, the rates in {source}", f"{far:g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error("compare", "report", "be a readable JSON file", f"{path} ({cause})") from cause
    return plain if isinstance(plain, dict) else {}

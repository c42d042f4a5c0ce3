"""1:N identification: whose face is it, among the people of a gallery, and is it anybody's there at all?"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attfc_cuda._check import error

RANKS = (1, 5, 10, 20)
FALSE_POSITIVE_RATES = (1e-1, 1e-2, 1e-3)
"""What papers on IJB-B and IJB-C report."""
_SCORES_AT_ONCE = 2**24
"""Bounds the memory of a tile of scores, float32, to 64 MiB."""


@dataclass(frozen=True)
class IdentificationResult:
    """What `evaluate_identification` measured. All rates are fractions in [0, 1].

    Attributes:
        rank: share of the mated probes whose mate is among the k best of the gallery, by k; the closed set.
        tpir_at_fpir: share of the mated probes whose mate scores at least the threshold, at each rate that the
            non-mated probes can support; the open set.
        threshold_at_fpir: the thresholds of these rates: cosines from which the best of the gallery is believed.
        num_gallery: identities in the gallery.
        num_mated: probes whose identity is in the gallery.
        num_non_mated: probes whose identity is not.
    """

    rank: dict[int, float]
    tpir_at_fpir: dict[float, float]
    threshold_at_fpir: dict[float, float]
    num_gallery: int
    num_mated: int
    num_non_mated: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ranks and rates as strings ("1", "0.01")."""
        return {
            "rank": {str(k): share for k, share in self.rank.items()},
            "tpir_at_fpir": {f"{rate:g}": share for rate, share in self.tpir_at_fpir.items()},
            "threshold_at_fpir": {f"{rate:g}": value for rate, value in self.threshold_at_fpir.items()},
            "num_gallery": self.num_gallery,
            "num_mated": self.num_mated,
            "num_non_mated": self.num_non_mated,
        }

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def summary(self) -> str:
        """Two lines for a terminal."""
        ranks = ", ".join(f"rank-{k} {share:.4f}" for k, share in self.rank.items()) or "no mated probes"
        open_set = ", ".join(
            f"TPIR {share:.4f} at FPIR {rate:g} (threshold {self.threshold_at_fpir[rate]:.4f})"
            for rate, share in self.tpir_at_fpir.items()
        )
        lacking = f"no rate: {self.num_non_mated} probes of people outside of the gallery support none"
        return (
            f"closed set: {ranks} ({self.num_mated} probes, {self.num_gallery} identities in the gallery)\n"
            f"open set: {open_set or lacking}" + (f" ({self.num_non_mated} non-mated probes)" if open_set else "")
        )


def search(
    probes: Tensor, gallery: Tensor, k: int, engine: Literal["torch", "faiss"] = "torch"
) -> tuple[Tensor, Tensor]:
    """The k rows of the gallery nearest to each probe.

    Equals ``(probes @ gallery.T).topk(k)`` without all scores in memory at once.

    Args:
        probes: float [P, D], unit rows.
        gallery: float [G, D], unit rows, on the same device.
        k: at most G.
        engine: torch: a product and a top-k, tile by tile, on the tensors' device; faiss: its exact index of inner
            products (`IndexFlatIP`), on the CPU.

    Returns:
        Cosines, float [P, k], the largest first, and rows of the gallery, int64 [P, k].

    Raises:
        ValueError: for shapes that do not fit, k outside of 1 to G, and scores that are not finite.
        ImportError: for faiss without faiss.
    """
    _check_rows("search", probes, gallery)
    if not 1 <= k <= len(gallery):
        raise error("search", "k", f"lie in 1 to {len(gallery)}, the size of the gallery", k)
    if engine == "faiss":
        return _search_faiss(probes, gallery, k)
    if engine != "torch":
        raise error("search", "engine", "be torch or faiss", repr(engine))
    found = [(tile @ gallery.T).topk(k) for tile in probes.split(max(1, _SCORES_AT_ONCE // len(gallery)))]
    if not found:
        return probes.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=probes.device)
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def evaluate_identification(
    probes: Tensor,
    probe_identities: np.ndarray | Sequence,
    gallery: Tensor,
    gallery_identities: np.ndarray | Sequence,
    ranks: Sequence[int] = RANKS,
    fpir: Sequence[float] = FALSE_POSITIVE_RATES,
) -> IdentificationResult:
    """1:N identification, closed and open set. Every probe is compared with the whole gallery.

    - Rank-k: the share of the mated probes (those whose identity is in the gallery) with fewer than k other identities
      that score at least as much as their own. So equal scores count against the network, and one that maps every face
      to the same point gets 0.
    - FPIR of a threshold: the share of the non-mated probes with anybody of the gallery at or above it.
    - TPIR at FPIR f: the highest share of the mated probes whose own identity scores at least the threshold, over the
      thresholds whose FPIR is at most f. Its rank is not asked for, as in the IJB protocols (NIST's FRVT asks for
      rank 1 as well). It is given only where at least 1 / f non-mated probes support it; with fewer than 10 / f it
      rests on fewer than ten false positives: read such a number as coarse.

    Args:
        probes: float [P, D], unit rows.
        probe_identities: [P], numbers or names.
        gallery: float [G, D], unit rows, one for each identity.
        gallery_identities: [G], each once.
        ranks: the k of rank-k, those above G are left out.
        fpir: the false positive identification rates.

    Source:
        IJB-B (Whitelam et al., CVPRW 2017) and IJB-C (Maze et al., ICB 2018), section on 1:N identification.

    Raises:
        ValueError: for shapes that do not fit, no probes, an identity twice in the gallery, scores that are not finite,
            ranks below 1, and rates outside (0, 1).
    """
    name = "evaluate_identification"
    _check_rows(name, probes, gallery)
    truth, known = np.asarray(probe_identities), np.asarray(gallery_identities)
    for argument, array, rows in (("probe_identities", truth, probes), ("gallery_identities", known, gallery)):
        if array.shape != (len(rows),):
            raise error(name, argument, f"have one entry per row, [{len(rows)}]", list(array.shape))
    if len(truth) == 0:
        raise error(name, "probes", "hold at least one row", "none")
    values, counts = np.unique(known, return_counts=True)
    if (counts > 1).any():
        remedy = "take one embedding for each, the mean of its images"
        raise error(name, "gallery_identities", "name each identity once", repr(values[counts > 1][0]), remedy)
    for k in ranks:
        if k < 1:
            raise error(name, "ranks", "be at least 1", k)
    for rate in fpir:
        if not 0.0 < rate < 1.0:
            raise error(name, "fpir", "lie between 0 and 1, both excluded", rate)
    column = {value: place for place, value in enumerate(known.tolist())}
    mate = np.array([column.get(value, -1) for value in truth.tolist()])
    own, others, best = _scores(probes, gallery, torch.from_numpy(mate).to(probes.device))
    mated = mate >= 0
    own, others, non_mated = own[mated], others[mated], best[~mated]
    tpir, thresholds = {}, {}
    for rate in map(float, fpir):
        if len(non_mated) * rate < 1.0 - 1e-9 or len(own) == 0:
            continue
        thresholds[rate] = _threshold(non_mated, rate)
        tpir[rate] = float(np.mean(own >= thresholds[rate]))
    return IdentificationResult(
        rank={int(k): float(np.mean(others < k)) for k in ranks if k <= len(gallery)} if len(own) else {},
        tpir_at_fpir=tpir,
        threshold_at_fpir=thresholds,
        num_gallery=len(gallery),
        num_mated=len(own),
        num_non_mated=len(non_mated),
    )


def _scores(probes: Tensor, gallery: Tensor, mate: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each probe: its mate's score, how many others score at least that, and the best score of all."""
    parts = []
    size = max(1, _SCORES_AT_ONCE // len(gallery))
    for tile, mates in zip(probes.split(size), mate.split(size), strict=True):
        scores = tile @ gallery.T
        own = scores.gather(1, mates.clamp(min=0)[:, None])
        parts.append((own[:, 0], (scores >= own).sum(1) - 1, scores.amax(1)))
    own, others, best = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if not np.isfinite(best).all():
        row = int(np.flatnonzero(~np.isfinite(best))[0])
        raise error("evaluate_identification", "probes", "have finite scores", f"{best[row]} in {row}")
    return own, others, best


def _threshold(non_mated: np.ndarray, rate: float) -> float:
    """The lowest threshold, a number of the scores' dtype, that at most the share `rate` of the non-mated reach."""
    allowed = int(np.floor(rate * len(non_mated) + 1e-9))
    highest_refused = np.sort(non_mated)[len(non_mated) - 1 - allowed]
    return float(np.nextafter(highest_refused, non_mated.dtype.type(np.inf)))


def _search_faiss(probes: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError as cause:
        remedy = 'pip install "attfc_cuda[search]", or leave the engine at torch'
        raise error("search", "faiss", "be installed", f"none ({cause})", remedy, ImportError) from cause
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.float().cpu().contiguous().numpy())
    scores, rows = index.search(probes.float().cpu().contiguous().numpy(), k)
    return torch.from_numpy(scores).to(probes.device), torch.from_numpy(rows).to(probes.device)


def _check_rows(function: str, probes: Tensor, gallery: Tensor) -> None:
    for argument, rows in (("probes", probes), ("gallery", gallery)):
        if rows.dim() != 2 or not rows.is_floating_point():
            raise error(function, argument, "be float [rows, D]", f"{rows.dtype} {list(rows.shape)}")
        if not bool(rows.isfinite().all()):
            row = int((~rows.isfinite().all(1)).nonzero()[0, 0])
            raise error(function, argument, "be finite", f"NaN or infinity in row {row}")
    if probes.shape[1] != gallery.shape[1]:
        raise error(function, "probes", f"have the gallery's {gallery.shape[1]} columns", probes.shape[1])
    if len(gallery) == 0:
        raise error(function, "gallery", "hold at least one row", "none")

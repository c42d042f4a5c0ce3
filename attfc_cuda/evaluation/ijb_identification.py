"""IJB-B and IJB-C, the 1:N protocol: two galleries of templates, and mixed probes of people in either."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.evaluation.identification import IdentificationResult, evaluate_identification
from attfc_cuda.evaluation.ijb import MEDIA, find_ijb

GALLERIES = (("1N_gallery_G1", "1N_gallery_G2"), ("1N_gallery_S1", "1N_gallery_S2"))
"""Names of IJB-C's two galleries, and of IJB-B's."""
PROBES = "1N_probe_mixed"


class Templates(NamedTuple):
    """Templates, numbered as in the `TemplateSet`, int64 [T], and whose they are, int64 [T]."""

    template: np.ndarray
    subject: np.ndarray


class IdentificationProtocol(NamedTuple):
    """The two galleries by their name, and the probes."""

    galleries: dict[str, Templates]
    probes: Templates


def read_ijb_identification(folder: str | Path) -> IdentificationProtocol:
    """The 1:N lists beside those that `read_ijb` reads, in `meta/`.

    `<name>_1N_gallery_G1.csv` and `_G2.csv` (IJB-B: `_S1`, `_S2`) and `<name>_1N_probe_mixed.csv`, each with a header
    and `TEMPLATE_ID,SUBJECT_ID` in the first two columns, a row for each image.

    Raises:
        FileNotFoundError: naming the list that is not there.
        ValueError: naming the file and the row for anything else, for a template without an image or of two subjects.
    """
    folder = Path(folder)
    name = find_ijb(folder)
    if name is None:
        raise error("read_ijb_identification", "folder", f"hold meta/<name>{MEDIA}", folder, kind=FileNotFoundError)
    meta = folder / "meta"
    media_lines = (meta / (name + MEDIA)).read_text(encoding="utf-8").splitlines()
    known = np.unique(np.array([line.split()[1] for line in media_lines if line.strip()], dtype=np.int64))
    galleries = next((pair for pair in GALLERIES if (meta / f"{name}_{pair[0]}.csv").is_file()), GALLERIES[0])
    return IdentificationProtocol(
        {gallery: _read(meta / f"{name}_{gallery}.csv", known) for gallery in galleries},
        _read(meta / f"{name}_{PROBES}.csv", known),
    )


def evaluate_ijb_identification(
    pooled: Tensor, protocol: IdentificationProtocol
) -> tuple[dict[str, IdentificationResult], IdentificationResult]:
    """Both galleries apart, with all probes: those of the other gallery's people are the non-mated ones.

    Args:
        pooled: unit embeddings of the templates, float [T, D], of `template_embeddings`.
        protocol: of `read_ijb_identification`.

    Returns:
        The result of each gallery, and their mean, which papers report (counts are sums).
    """
    results = {
        name: evaluate_identification(
            pooled[protocol.probes.template], protocol.probes.subject, pooled[gallery.template], gallery.subject
        )
        for name, gallery in protocol.galleries.items()
    }
    return results, _mean(list(results.values()))


def _mean(results: list[IdentificationResult]) -> IdentificationResult:
    def mean(columns: list[dict]) -> dict:
        shared = [key for key in columns[0] if all(key in column for column in columns)]
        return {key: float(np.mean([column[key] for column in columns])) for key in shared}

    return IdentificationResult(
        rank=mean([r.rank for r in results]),
        tpir_at_fpir=mean([r.tpir_at_fpir for r in results]),
        threshold_at_fpir=mean([r.threshold_at_fpir for r in results]),
        num_gallery=sum(r.num_gallery for r in results),
        num_mated=sum(r.num_mated for r in results),
        num_non_mated=sum(r.num_non_mated for r in results),
    )


def _read(path: Path, known: np.ndarray) -> Templates:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except FileNotFoundError as cause:
        raise error(
            "read_ijb_identification", "folder", "hold its lists", f"no file {path}", kind=FileNotFoundError
        ) from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise error("read_ijb_identification", str(path), "be CSV in UTF-8", cause) from cause
    subject_of: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        where = f"row {number} of {path}"
        if len(row) < 2 or not all(text.strip().isdecimal() and len(text) <= 18 for text in row[:2]):
            raise error("read_ijb_identification", where, "begin with two whole numbers", ",".join(row)[:60])
        template, subject = int(row[0]), int(row[1])
        if subject_of.setdefault(template, subject) != subject:
            got = f"{subject} for template {template}, of {subject_of[template]} above"
            raise error("read_ijb_identification", where, "give a template one subject", got)
    if not subject_of:
        raise error("read_ijb_identification", str(path), "hold at least one row", "none")
    templates = np.array(list(subject_of), dtype=np.int64)
    strangers = templates[~np.isin(templates, known)]
    if len(strangers):
        raise error("read_ijb_identification", str(path), "name templates that have images", f"template {strangers[0]}")
    return Templates(np.searchsorted(known, templates), np.array(list(subject_of.values()), dtype=np.int64))

"""The scores of pairs as a file: NumPy's .npz or .csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from attfc_cuda._files import replacing
from attfc_cuda.evaluation.report import SetResult


def write_scores(results: list[SetResult], path: Path) -> list[Path]:
    """Write the score of every pair, by the path's ending as .npz or .csv.

    One file for each set and method: `path` itself where there is one only, else with the set's name in front of the
    ending.

    Columns of .csv, arrays of .npz: `a`, `b` (names of the images; where they have none, their numbers), `same` (1 or
    0), `similarity`. Where impostors were counted instead, `similarity` (the lower end of a bin), `same` and `count`.

    Returns:
        The files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for number, result in enumerate(results):
        names = [other.data for other in results]
        mark = result.data if names.count(result.data) == 1 else f"{result.data}_{number}"
        target = path if len(results) == 1 else path.with_name(f"{path.stem}_{mark}{path.suffix}")
        columns = _columns(result)
        with replacing(target) as part:
            if target.suffix == ".npz":
                with open(part, "wb") as file:
                    np.savez_compressed(file, **columns)  # type: ignore[arg-type]
            else:
                with open(part, "w", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerow(columns)
                    # A number's shortest text that reads back as the same number of its format.
                    texts = [column.astype(str).tolist() for column in columns.values()]
                    writer.writerows(zip(*texts, strict=True))
        files.append(target)
    return files


def _columns(result: SetResult) -> dict[str, np.ndarray]:
    scores = result.measured.scores
    same = scores.same.astype(np.uint8)
    if scores.a is None or scores.b is None:
        assert scores.pair_count is not None
        return {"similarity": scores.similarity, "same": same, "count": scores.pair_count}
    a, b = scores.a, scores.b
    if result.names is not None:
        names = np.array(result.names)
        a, b = names[a], names[b]
    return {"a": a, "b": b, "same": same, "similarity": scores.similarity}

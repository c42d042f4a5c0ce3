"""Embeddings in files: .npy with the names beside it in .csv or .json, or all in one .parquet.

What network they are of stands beside a .npy in NAME.network.json, in a .parquet in the schema's metadata.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda._files import replacing, write_text
from attfc_cuda.evaluation.fingerprint import MadeBy
from attfc_cuda.evaluation.named_images import NamedEmbeddings

SUFFIXES = (".npy", ".parquet")
NAMES = ("csv", "json")
COLUMNS = ("name", "identity")
_BESIDE, _METADATA = ".network.json", "attfc_cuda"


def write_embeddings(embedded: NamedEmbeddings, path: Path, names: str = "csv") -> list[Path]:
    """Write embeddings with the names and identities of their images.

    Args:
        embedded: What to write.
        path: `.npy`: float32 [N, D], with the names in a file beside it whose row i belongs to row i; `.parquet`: the
            columns name, identity and embedding (a list of D floats).
        names: csv (with a header) or json (`{"name": [...], "identity": [...]}`), for `.npy`.

    Returns:
        The files.

    Raises:
        ValueError: For another ending or format.
        ImportError: For .parquet without pyarrow.
    """
    check_path("write_embeddings", "path", path)
    if names not in NAMES:
        raise error("write_embeddings", "names", f"be {' or '.join(NAMES)}", repr(names))
    parquet = _pyarrow("write_embeddings") if path.suffix == ".parquet" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    made_by = None if embedded.made_by is None else embedded.made_by._asdict()
    columns = {"name": _as_text(embedded.names), "identity": _as_text(embedded.identities)}
    if parquet is not None:
        arrow: Any = importlib.import_module("pyarrow")
        flat = arrow.array(embedded.embeddings.numpy().reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(flat, embedded.embeddings.shape[1])
        metadata = {} if made_by is None else {_METADATA: json.dumps(made_by)}
        with replacing(path) as part:
            parquet.write_table(arrow.table({**columns, "embedding": vectors}, metadata=metadata), part)
        return [path]
    described = path.with_suffix(_BESIDE)
    described.unlink(missing_ok=True)  # it was of what is replaced now
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, embedded.embeddings.numpy(), allow_pickle=False)
    beside = path.with_suffix(f".{names}")
    if names == "json":
        write_text(beside, json.dumps(columns, ensure_ascii=False, indent=1) + "\n")
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*columns.values(), strict=True))
        write_text(beside, text.getvalue())
    if made_by is None:
        return [path, beside]
    write_text(described, json.dumps(made_by) + "\n")
    return [path, beside, described]


def read_embeddings(path: Path) -> NamedEmbeddings:
    """The inverse of `write_embeddings`.

    Raises:
        ValueError: Naming a file that is missing, damaged, or does not fit the one beside it.
        ImportError: For .parquet without pyarrow.
    """
    check_path("read_embeddings", "path", path)
    try:
        if path.suffix == ".parquet":
            table = _pyarrow("read_embeddings").read_table(path)
            array = np.stack(table["embedding"].to_numpy()).astype(np.float32)
            columns = {name: table[name].to_pylist() for name in COLUMNS}
            text = (table.schema.metadata or {}).get(_METADATA.encode())
        else:
            array, columns = np.load(path, allow_pickle=False), _read_names(path)
            described = path.with_suffix(_BESIDE)
            text = described.read_bytes() if described.is_file() else None
        made_by = None if text is None else _made_by(json.loads(text))
    except ImportError:
        raise
    except Exception as cause:  # of numpy, csv, json and pyarrow, on damaged files
        raise error("read_embeddings", "path", "be a file of `attfc embed`", f"{path} ({cause})") from cause
    names, identities = (columns[name] for name in COLUMNS)
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array) == len(names) == len(identities):
        got = f"{array.dtype} {list(array.shape)} with {len(names)} names in {path}"
        raise error("read_embeddings", "path", "hold float [N, D] and N names", got)
    return NamedEmbeddings(torch.from_numpy(array).float(), names, identities, [], made_by)


def _made_by(plain: dict[str, Any]) -> MadeBy:
    return MadeBy(*(str(plain[name]) for name in MadeBy._fields))


def check_path(function: str, argument: str, path: Path) -> None:
    """Raise ValueError for a file of another ending."""
    if path.suffix not in SUFFIXES:
        raise error(function, argument, f"end in {' or '.join(SUFFIXES)}", path)


def _as_text(names: list[str]) -> list[str]:
    """Names that UTF-8 can hold: bytes of a file's name that are none are written out, as \\udc80."""
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def _read_names(path: Path) -> dict[str, list[str]]:
    places = [path.with_suffix(f".{kind}") for kind in NAMES]
    found = [place for place in places if place.is_file()]
    if not found:
        raise FileNotFoundError(f"no {' or '.join(place.name for place in places)} beside it")
    if len(found) > 1:  # one may be of an earlier array, with other names
        raise ValueError(f"{' and '.join(place.name for place in found)} beside it: remove the older one")
    (beside,) = found
    with open(beside, encoding="utf-8", newline="") as file:
        if beside.suffix == ".json":
            columns = json.load(file)
            return {name: list(map(str, columns[name])) for name in COLUMNS}
        rows = list(csv.DictReader(file))
        return {name: [row[name] for row in rows] for name in COLUMNS}


def _pyarrow(function: str) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as cause:
        remedy = 'pip install "attfc_cuda[parquet]", or write .npy'
        raise error(function, "pyarrow", "be installed", f"none ({cause})", remedy, ImportError) from cause

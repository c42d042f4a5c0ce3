"""Files whose rows hold an encoded image and its label: Parquet tables, and LMDB databases of msgpack values."""

from __future__ import annotations

import importlib.util
import io
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_archives import walked
from fuzz_parts import FACES, PICTURES, Target, changed_value, odd_value
from fuzz_records import drain, strictly_too, write_anew

from attfc_cuda.data import LmdbFaces, ParquetFaces
from attfc_cuda.data.sources import lmdb as lmdb_source
from attfc_cuda.data.sources.index_cache import SUFFIX
from attfc_cuda.data.sources.lmdb import lmdb

HAS_PARQUET = importlib.util.find_spec("pyarrow") is not None
HAS_MSGPACK = lmdb is not None and importlib.util.find_spec("msgpack") is not None
_MOST_BYTES = 4096  # of a value that is no picture: how large one is, is another target's matter


def _table(columns: dict[str, list], metadata: dict[bytes, bytes] | None, groups: int) -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    table = pyarrow.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata), stream, row_group_size=groups, compression="none")
    return stream.getvalue()


def _features(names: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()}


def parquet_seeds(folder: Path) -> list[bytes]:
    (folder / "face.png").write_bytes(PICTURES[1])
    structs = [{"bytes": face, "path": "x.png"} for face in FACES[:4]] + [{"bytes": None, "path": "face.png"}]
    return [
        _table({"image": structs, "label": [0, 1, 1, 0, 2]}, _features(["a", "b", "c"]), 2),
        _table({"jpg": FACES[:4], "identity": ["ann", "ben", "ann", "ben"]}, None, 3),
    ]


def run_parquet(data: bytes, folder: Path) -> bool:
    return drain(strictly_too(ParquetFaces), write_anew(folder / "a.parquet", data))


def changed_table(data: bytes, rng: random.Random) -> bytes:
    """A table of other values, names and types, as far as one can be written of them."""
    import pyarrow

    while True:
        images: list[Any] = [{"bytes": face, "path": "face.png"} for face in FACES[:4]]
        columns = {"image": images, "label": [0, 1, 0, 1], "name": ["a", "b", "a", "c"]}
        columns = changed_value(columns, rng, _small_odd_value)
        names = changed_value({"names": ["a", "b"]}, rng, _small_odd_value) if rng.random() < 0.5 else {"names": ["a"]}
        try:
            return _table(columns, _features(names), rng.choice((1, 2, 9)))
        except (TypeError, ValueError, AttributeError, OverflowError, pyarrow.ArrowException):
            continue  # of no one type, or columns of other lengths


def _small_odd_value(value: Any, rng: random.Random) -> Any:
    odd = odd_value(value, rng)
    return odd[:_MOST_BYTES] if isinstance(odd, (str, bytes)) else odd


def msgpack_seeds(folder: Path) -> list[bytes]:
    """What `run_msgpack` makes a database of: a list of values, in msgpack."""
    import msgpack

    return [
        msgpack.packb([msgpack.packb([face, k // 2]) for k, face in enumerate(FACES)]),
        msgpack.packb([msgpack.packb({"image": face, "label": f"p{k // 2}"}) for k, face in enumerate(FACES)]),
    ]


def run_msgpack(data: bytes, folder: Path) -> bool:
    """As the values of a sound database; the database itself is another target's."""
    import msgpack

    path = folder / "values.lmdb"
    for suffix in ("", "-lock", SUFFIX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    try:
        values = msgpack.unpackb(data)
    except Exception:
        values = None
    values = values if isinstance(values, list) else [data]
    with lmdb.open(str(path), map_size=2**22, subdir=False) as environment, environment.begin(write=True) as entries:
        for k, value in enumerate(values):
            entries.put(b"%d" % k, value if isinstance(value, bytes) else data)
        entries.put(b"__len__", msgpack.packb(len(values)))
    with mock.patch.object(lmdb_source.subprocess, "run", walked):
        return drain(strictly_too(LmdbFaces), path)


def changed_msgpack(data: bytes, rng: random.Random) -> bytes:
    """Some values of other parts, keys and nesting, or with some bytes changed."""
    import msgpack

    values = msgpack.unpackb(data)
    for at in rng.sample(range(len(values)), rng.choice((1, 1, 2))):
        if rng.random() < 0.3:
            place = rng.randrange(8)
            values[at] = values[at][:place] + rng.randbytes(rng.choice((0, 1, 4))) + values[at][place + 1 :]
            continue
        try:
            values[at] = msgpack.packb(changed_value(msgpack.unpackb(values[at]), rng, _small_odd_value))
        except (OverflowError, ValueError):  # a number or a nesting that msgpack does not have
            values[at] = b""
    return msgpack.packb(values)


PARQUET = Target(parquet_seeds, run_parquet, changed_table)
MSGPACK = Target(msgpack_seeds, run_msgpack, changed_msgpack, 0.5)

"""Compressed tar shards, unpacked once beside themselves: an image in a compressed file cannot be read by itself."""

from __future__ import annotations

import gzip
import shutil
import sys
import zlib
from pathlib import Path

from attfc_cuda._check import error, printable
from attfc_cuda._files import replacing
from attfc_cuda.data.sources.kinds import SAME_TIME_NS, UNPACKED_SUFFIX, tar_name

# Photographs hardly shrink; what unpacks to more than this is no shard of them.
_LARGEST_RATIO, _SPARE_BYTES = 50, 2**30
_CHUNK = 2**20


def unpacked(shard: Path) -> Path:
    """What a .tar.gz unpacks to: beside it, `a.tar.gz.attfc_unpacked`, or an `a.tar` that has its time, as gunzip
    leaves it. Made where neither is there; no file of another name is written.

    Raises:
        ValueError: For a file that is no whole gzip, unpacks to far more than images do, or a folder that cannot be
            written.
    """
    target, time_ns = shard.with_name(shard.name + UNPACKED_SUFFIX), shard.stat().st_mtime_ns
    for there in (target, tar_name(shard)):
        if there != shard and there.is_file() and abs(there.stat().st_mtime_ns - time_ns) <= SAME_TIME_NS:
            return there
    print(printable(f"attfc: unpacking {shard} to {target}, once"), file=sys.stderr, flush=True)
    most = _LARGEST_RATIO * shard.stat().st_size + _SPARE_BYTES
    try:
        with gzip.open(shard, "rb") as packed, replacing(target, shared=True) as part:
            with open(part, "wb") as out:
                while chunk := packed.read(_CHUNK):
                    if out.tell() + len(chunk) > most:
                        raise ValueError(f"it unpacks to more than {most} bytes")
                    out.write(chunk)
            shutil.copystat(shard, part)  # by whose time it is known
    except (OSError, EOFError, ValueError, zlib.error) as cause:
        remedy = f"unpack it yourself, gunzip -k {shard}, and give the .tar"
        got = f"{shard} ({' '.join(str(cause).split())[:200]})"
        raise error("TarFaces", "shards", "be whole gzip files in a folder that can be written", got, remedy) from cause
    return target

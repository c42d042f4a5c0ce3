#!/usr/bin/env bash
# lmdb 3.0.0. Expected: writing with append=True, LMDB's fast path for sorted keys, raises an error when a key is out of
# order.
# Seen: put(append=True) returns False and stores nothing; putmulti counts what it took and carries on. With the image
# numbers as text for keys ("9" sorts after "10"), 1,000 records written in order leave only 30 in the file, and no
# error.
# It matters because converters of face data sets number their images, write for hours and look at no return value.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lmdb==3.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import lmdb

env = lmdb.open("faces", map_size=1 << 24)
with env.begin(write=True) as txn:
    stored = [txn.put(str(i).encode(), b"image", append=True) for i in range(1000)]
    stored_at = [txn.get(str(i).encode()) is not None for i in range(1000)]
kept = [i for i, there in enumerate(stored_at) if there]
entries = env.stat()["entries"]
print(f"seen: 1000 written, {entries} stored, {stored.count(False)} quiet refusals; kept: {kept}")
env = lmdb.open("faces_many", map_size=1 << 24)
with env.begin(write=True) as txn:
    consumed, added = txn.cursor().putmulti([(str(i).encode(), b"image") for i in range(1000)], append=True)
print(f"seen: putmulti consumed {consumed}, added {added}")
padded = lmdb.open("padded", map_size=1 << 24)
with padded.begin(write=True) as txn:
    assert all(txn.put(f"{i:09d}".encode(), b"image", append=True) for i in range(1000))
raise SystemExit(0 if (entries, stored.count(False), consumed, added) == (30, 970, 1000, 30) else 1)
PY

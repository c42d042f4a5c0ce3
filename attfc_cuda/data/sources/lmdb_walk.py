"""Visits every page of an LMDB file, in a process of its own; run as a script, imports nothing of the package.

LMDB's library trusts its file: a damaged one can end the process that reads it. So what `LmdbFaces` is about to do is
done here first: the same look-ups, the same bytes touched. A file that survives is safe to read (as long as nobody
writes it); one that does not ends this process only.

Output: for each key its length (uint32), the key, the length of its value (uint64) and the value's first 4 bytes (zeros
behind a shorter one), then an empty key.
"""

import os
import struct
import sys

sys.path.pop(0)  # this folder, whose modules are not meant to be imported by their bare names

import lmdb  # noqa: E402

path = sys.argv[1]
file = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
size = os.path.getsize(file)
out = sys.stdout.buffer
with (
    lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, max_dbs=0) as env,
    env.begin(buffers=True) as transaction,
):
    before, keys_size = None, 0
    for key, value in transaction.cursor():
        name = bytes(key)
        keys_size += len(name) + 8  # what a key takes at least
        if keys_size > size or (before is not None and name <= before):
            sys.exit(f"its keys are out of order at {name!r}")
        if len(value) > size:
            sys.exit(f"the value of {name!r} is larger than the file")
        found = transaction.get(name)
        if found is None or len(found) != len(value):
            sys.exit(f"looking for {name!r} does not find it")
        if len(found):
            touched = found[0] ^ found[-1]  # the ends of a value: what lies between is mapped with them
        out.write(struct.pack("<I", len(name)) + name + struct.pack("<Q4s", len(value), bytes(value[:4])))
        before = name
out.write(struct.pack("<I", 0))

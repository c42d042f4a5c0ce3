#!/usr/bin/env bash
# pyarrow 26.0.1, embeddings as a fixed-size list column. Expected: batch["embedding"].values holds the rows of that
# batch.
# Seen: batches that a data set or a sliced table hands out are windows on a larger buffer, and .values ignores the
# window: every batch gives the whole row group from its start (ParquetFile.iter_batches copies and is right; .flatten()
# heeds the window).
# It matters because .values is the cheap way to numpy: cut to the batch's length, each batch's embeddings are the first
# batch's, beside the right labels, and the verification accuracy drops to chance with no error.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

count, width = 5000, 4
rows = pa.array(np.arange(count, dtype=np.float32).repeat(width))
table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(rows, width), "label": np.arange(count)})
pq.write_table(table, "embeddings.parquet", row_group_size=2000)


def wrong(batches, read):
    bad = total = 0
    for batch in batches:
        label = batch["label"].to_numpy()
        first = read(batch["embedding"]).to_numpy().reshape(-1, width)[: len(label), 0]
        bad, total = bad + int((first != label).sum()), total + len(label)
    return bad, total


def dataset():
    return pyarrow.dataset.dataset("embeddings.parquet").to_batches(batch_size=512)


seen = {
    "data set, .values": wrong(dataset(), lambda column: column.values),
    "table, .values": wrong(table.to_batches(max_chunksize=512), lambda column: column.values),
    "ParquetFile, .values": wrong(pq.ParquetFile("embeddings.parquet").iter_batches(512), lambda column: column.values),
    "data set, .flatten()": wrong(dataset(), lambda column: column.flatten()),
}
for name, (bad, total) in seen.items():
    print(f"seen: {name}: {bad} of {total} embeddings beside a foreign label")
ok = seen["data set, .values"][0] > 2500 and seen["table, .values"][0] > 2500
raise SystemExit(0 if ok and seen["ParquetFile, .values"][0] == seen["data set, .flatten()"][0] == 0 else 1)
PY

"""The fourteen entry points for files of others, with what each may raise; whatever else comes out of one is a fault.

| entry              | what reads it                                                   | errors                      |
| ------------------ | --------------------------------------------------------------- | --------------------------- |
| rec                | `RecordFaces`, by its parts and by a whole .idx                 | ValueError, UnreadableImage |
| idx                | `RecordFaces` of a whole .rec                                   | ValueError, UnreadableImage |
| cached index       | `RecordFaces`, `TarFaces`, `ListFaces`, `FolderFaces`           | ValueError, UnreadableImage |
| bin                | `read_bin` (InsightFace's verification sets: pickles)           | ValueError, UnreadableImage |
| tar                | `TarFaces`                                                      | ValueError, UnreadableImage |
| lmdb               | `LmdbFaces`                                                     | ValueError, UnreadableImage |
| parquet            | `ParquetFaces`                                                  | ValueError, UnreadableImage |
| msgpack            | `LmdbFaces`, of values in msgpack                               | ValueError, UnreadableImage |
| image              | `decode_image`: JPEG, PNG, BMP, PPM, WEBP, TIFF                 | UnreadableImage             |
| lists              | `ListFaces`, `read_pairs` (LFW's too), `read_ijb`               | ValueError, UnreadableImage |
| checkpoint         | `checkpoint.load`, `load_backbone`, `attfc train --resume`      | CheckpointError             |
| backbone           | `export.from_safetensors` (timm's options in it), InsightFace's | ValueError                  |
|                    | `load_backbone` and `load_centers`                              |                             |
| insightface config | `read_config`, `train_config`                                   | ValueError                  |
| run files          | config.json, log.jsonl, manifest.json                           | ValueError                  |

A resumed run's settings that differ are a ValueError too. Each error names its file or setting, and none holds what
steers a terminal. UnreadableImage, an OSError, is of one image; a data set with on_bad_image "skip" leaves it out.
"""

from __future__ import annotations

import warnings

from fuzz_archives import BIN, LMDB, TAR, lmdb
from fuzz_images import IMAGE
from fuzz_parts import Target
from fuzz_records import CACHED_INDEX, IDX, REC
from fuzz_tables import HAS_MSGPACK, HAS_PARQUET, MSGPACK, PARQUET
from fuzz_tensors import BACKBONE, CHECKPOINT
from fuzz_texts import INSIGHTFACE_CONFIG, LISTS, RUN_FILES

TARGETS: dict[str, Target] = {
    "rec": REC, "idx": IDX, "cached index": CACHED_INDEX, "bin": BIN, "tar": TAR, "lmdb": LMDB, "image": IMAGE,
    "lists": LISTS, "checkpoint": CHECKPOINT, "backbone": BACKBONE, "insightface config": INSIGHTFACE_CONFIG,
    "run files": RUN_FILES, "parquet": PARQUET, "msgpack": MSGPACK,
}  # fmt: skip
for _name, _there in (("lmdb", lmdb is not None), ("parquet", HAS_PARQUET), ("msgpack", HAS_MSGPACK)):
    if not _there:
        del TARGETS[_name]

warnings.simplefilter("ignore")  # Pillow has many for damaged images

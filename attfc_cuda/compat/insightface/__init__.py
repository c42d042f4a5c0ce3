"""For people who come from InsightFace's `recognition/arcface_torch`: its head, margins, checkpoints and configs.

    from attfc_cuda.compat.insightface import PartialFC_V2      # instead of: from partial_fc_v2 import PartialFC_V2

is the one line of its `train_v2.py` that changes. What differs from the original is listed where it differs: in the
docstrings of `PartialFC_V2` and of `as_margin`.
"""

from attfc_cuda.compat.insightface.checkpoints import load_backbone, load_centers
from attfc_cuda.compat.insightface.config import read_config, train_config
from attfc_cuda.compat.insightface.head import PartialFC_V2
from attfc_cuda.compat.insightface.margins import as_margin

__all__ = ["PartialFC_V2", "as_margin", "load_backbone", "load_centers", "read_config", "train_config"]

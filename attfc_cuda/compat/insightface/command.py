"""`attfc import`: InsightFace's backbones become run folders, its configs settings of `attfc train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attfc_cuda._check import error
from attfc_cuda.backbones.iresnet import STAGE_BLOCKS
from attfc_cuda.compat.insightface.checkpoints import load_backbone
from attfc_cuda.compat.insightface.config import read_config, train_config
from attfc_cuda.train import TrainConfig, checkpoint

# What stands where a run's checkpoint names its objective, so that --resume says what is wrong.
NO_OBJECTIVE = "nothing (an imported backbone, which can be verified and exported)"


@dataclass
class ImportCommand:
    """Take over a backbone or a config of InsightFace; class centres: attfc_cuda.compat.insightface.load_centers."""

    to: Path
    """With --backbone: run folder to make, for `attfc verify --checkpoint` and `attfc export --run`. With --config:
    JSON file to write, for `attfc train --config`."""
    backbone: Path | None = None
    """Checkpoint of an IResNet (model.pt, backbone.pth, checkpoint_gpu_0.pt)."""
    config: Path | None = None
    """Config file (configs/ms1mv3_r50.py); it is parsed, not run."""


def run(command: ImportCommand) -> int:
    """`attfc import`."""
    if (command.backbone is None) == (command.config is None):
        got = f"backbone {command.backbone}, config {command.config}"
        raise error("import", "backbone", "be given, or config, and not both", got)
    if command.backbone is not None:
        path = import_backbone(command.backbone, command.to)
        print(f"written: {path}")
        return 0
    config, remarks = train_config(read_config(command.config))
    command.to.parent.mkdir(parents=True, exist_ok=True)
    config.save(command.to)
    print(f"written: {command.to}")
    for remark in remarks:
        print(f"not the same: {remark}")
    return 0


def import_backbone(source: Path, folder: Path) -> Path:
    """Make `folder` a run whose only checkpoint, at step 0, is InsightFace's backbone; returns the checkpoint's path.

    Raises: ValueError for a folder that has checkpoints, and those of `load_backbone`.
    """
    if checkpoint.find(folder / "checkpoints"):
        raise error("import", "to", "be a folder without checkpoints", folder)
    backbone = load_backbone(source)
    blocks = tuple(len(getattr(backbone, f"layer{stage}")) for stage in range(1, 5))
    depth = next(depth for depth, count in STAGE_BLOCKS.items() if count == blocks)
    config = TrainConfig()
    config.model.backbone, config.model.embedding_dim = f"iresnet{depth}", backbone.embedding_dim
    config.dataset.image_size, config.run.run = backbone.image_size, folder
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    state = {"config": config.to_dict(), "backbone": backbone.state_dict(), "objective_type": NO_OBJECTIVE}
    return checkpoint.save(state, folder / "checkpoints", step=0, keep=1)

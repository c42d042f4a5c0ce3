"""An InsightFace backbone as a run folder, which every command of ours takes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from attfc_cuda._check import error
from attfc_cuda.backbones.iresnet import STAGE_BLOCKS
from attfc_cuda.compat.insightface.checkpoints import load_backbone
from attfc_cuda.train import TrainConfig, checkpoint

# What stands where a run's checkpoint names its objective, so that --resume says what is wrong.
NO_OBJECTIVE = "nothing (an imported backbone, which can be verified and exported)"


def import_backbone(source: Path, folder: Path, bgr: bool = False) -> Path:
    """Make `folder` a run whose only checkpoint, at step 0, is the backbone of a file.

    Args:
        source: File as for `load_backbone`.
        folder: Run folder to make.
        bgr: As for `load_backbone`.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: For a folder that has checkpoints, and as `load_backbone` does.
    """
    if checkpoint.find(folder / "checkpoints"):
        raise error("import", "to", "be a folder without checkpoints", folder)
    backbone = load_backbone(source, bgr=bgr)
    blocks = tuple(len(getattr(backbone, f"layer{stage}")) for stage in range(1, 5))
    depth = next(depth for depth, count in STAGE_BLOCKS.items() if count == blocks)
    config = TrainConfig()
    config.model.backbone, config.model.embedding_dim = f"iresnet{depth}", backbone.embedding_dim
    block = backbone.layer1[0]
    options = {
        "middle_norm": isinstance(block.bn2, nn.Identity),
        "pool_shortcut": isinstance(block.downsample, nn.MaxPool2d),
    }
    changed = [name for name, other in options.items() if other]
    config.model.backbone_options = ",".join(f"{name}={name != 'middle_norm'}" for name in changed)
    config.dataset.image_size, config.run.run = backbone.image_size, folder
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    state = {"config": config.to_dict(), "backbone": backbone.state_dict(), "objective_type": NO_OBJECTIVE}
    return checkpoint.save(state, folder / "checkpoints", step=0, keep=1)

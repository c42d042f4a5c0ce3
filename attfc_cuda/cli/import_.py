"""`attfc import`: others' backbones become run folders, InsightFace's configs settings of `attfc train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attfc_cuda._error import error


@dataclass
class Command:
    """Take over a backbone of InsightFace, MagFace, AdaFace, CVLface or face.evoLVe, or a config of InsightFace; class
    centres: attfc_cuda.compat.insightface.load_centers."""

    to: Path
    """With --backbone: run folder to make, for `attfc verify --checkpoint` and `attfc export --run`. With --config:
    JSON file to write, for `attfc train --config`."""
    backbone: Path | None = None
    """Checkpoint of an IResNet or IR network (model.pt, backbone.pth, checkpoint_gpu_0.pt, adaface_ir50_*.ckpt)."""
    bgr: bool = False
    """With --backbone: it was trained on images with blue first, as AdaFace's own networks were."""
    config: Path | None = None
    """Config file (configs/ms1mv3_r50.py); it is parsed, not run."""
    processes: int = 1
    """With --config: processes (GPUs) that it is for. Its batch_size is that of each; here --batch-size is that of all
    together, and so is the learning rate in both."""
    batch_size: int | None = None
    """With --config: train with this many probes a step instead, and a learning rate in proportion."""
    network: str | None = None
    """With --config: backbone in place of its network, such as iresnet50 or timm:vit_small_patch16_224."""


def run(command: Command) -> int:
    """Write the run folder or the settings, and say what could not be taken over; exit code 0."""
    if (command.backbone is None) == (command.config is None):
        got = f"backbone {command.backbone}, config {command.config}"
        raise error("import", "backbone", "be given, or config, and not both", got)
    if command.backbone is not None:
        from attfc_cuda.compat.insightface.run_folder import import_backbone

        print(f"written: {import_backbone(command.backbone, command.to, command.bgr)}")
        return 0
    from attfc_cuda.compat.insightface.config import read_config, train_config

    config, remarks = train_config(
        read_config(command.config),
        processes=command.processes,
        batch_size=command.batch_size,
        backbone=command.network,
    )
    command.to.parent.mkdir(parents=True, exist_ok=True)
    config.save(command.to)
    print(f"written: {command.to}")
    for remark in remarks:
        print(f"not the same: {remark}")
    return 0

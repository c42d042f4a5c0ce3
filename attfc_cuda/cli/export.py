"""`attfc export`: the backbone of a run for others to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attfc_cuda._error import error

SUFFIXES = (".onnx", ".safetensors")


@dataclass
class Command:
    """Write the backbone of a run as ONNX (dynamic batch, checked against torch by onnxruntime) or as safetensors."""

    run: Path
    """Run folder (its newest checkpoint), or a checkpoint file."""
    to: Path
    """File to write: its ending, .onnx or .safetensors, is the format."""


def run(command: Command) -> int:
    """Write the file; exit code 0."""
    if command.to.suffix not in SUFFIXES:
        raise error("export", "to", f"end in {' or '.join(SUFFIXES)}", command.to)
    from attfc_cuda import export
    from attfc_cuda.train import TrainConfig, checkpoint, load_backbone
    from attfc_cuda.train.config import parse_options

    backbone, name = load_backbone(command.run)
    if command.to.suffix == ".onnx":
        largest = export.to_onnx(backbone, command.to)
        print(f"written: {command.to}, unit embeddings within {largest:.1e} of torch's")
    else:
        config = TrainConfig.from_dict(checkpoint.open_any(command.run, mapped=True)["config"])
        options = parse_options(config.model.backbone_options, "backbone_options")
        export.to_safetensors(backbone, command.to, name, options)
        print(f"written: {command.to}")
    return 0

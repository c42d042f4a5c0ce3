"""`attfc export`: the backbone of a run for others to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attfc_cuda._error import error
from attfc_cuda.cli._network import chosen, run_folder

SUFFIXES = (".onnx", ".safetensors")


@dataclass
class Command:
    """Write the backbone of a run as ONNX (dynamic batch, checked against torch by onnxruntime) or as safetensors."""

    run: Path
    """Run folder (its newest checkpoint), or a checkpoint file."""
    to: Path
    """File to write: its ending, .onnx or .safetensors, is the format."""
    best: bool = False
    """Of a run folder: the network with the best verification during the run (best.pt)."""
    flip: bool = False
    """ONNX: the graph adds the embedding of the mirrored image, as `attfc verify` does."""
    unit: bool = False
    """ONNX: the graph brings embeddings to unit length, so that their product is the cosine."""
    thresholds: Path | None = None
    """ONNX: JSON file of `attfc verify` whose thresholds go into the metadata, of the same network and the same kind of
    embedding (with the mirrored image's or without); None: that in the run folder with the most pairs, if any."""


def run(command: Command) -> int:
    """Write the file; exit code 0."""
    if command.to.suffix not in SUFFIXES:
        raise error("export", "to", f"end in {' or '.join(SUFFIXES)}", command.to)
    if command.to.suffix != ".onnx" and (command.flip or command.unit or command.thresholds):
        raise error("export", "to", "end in .onnx with flip, unit or thresholds", command.to)
    from attfc_cuda import export
    from attfc_cuda.evaluation.fingerprint import MIRRORED, PLAIN, fingerprint
    from attfc_cuda.onnx_network import thresholds_for
    from attfc_cuda.train import TrainConfig, checkpoint, load_backbone
    from attfc_cuda.train.config import parse_options

    source = chosen(command.run, command.best, "run")
    backbone, name = load_backbone(source)
    if command.to.suffix == ".onnx":
        kind = MIRRORED if command.flip else PLAIN
        thresholds, name_of_set, report = thresholds_for(
            command.thresholds, run_folder(command.run), fingerprint(backbone), kind
        )
        largest = export.to_onnx(
            backbone,
            command.to,
            name,
            flip=command.flip,
            unit=command.unit,
            thresholds=thresholds,
            thresholds_set=name_of_set,
        )
        print(f"written: {command.to}, unit embeddings within {largest:.1e} of torch's")
        if report is None:
            verify = "attfc verify" if command.flip else "attfc verify --no-flip"
            print(f"no thresholds in it: {verify} finds them, for the {kind} embedding of this file")
        else:
            print(f"thresholds for the {kind} embedding at FAR {', '.join(thresholds) or 'none'}, from {report}")
    else:
        config = TrainConfig.from_dict(checkpoint.open_any(source, mapped=True)["config"])
        options = parse_options(config.model.backbone_options, "backbone_options")
        export.to_safetensors(backbone, command.to, name, options)
        print(f"written: {command.to}")
    return 0

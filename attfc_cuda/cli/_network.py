"""The flags that commands which embed images share, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attfc_cuda._error import error

if TYPE_CHECKING:
    from torch import nn

    from attfc_cuda.evaluation.named_images import NamedEmbeddings


@dataclass(kw_only=True)
class NetworkFlags:
    """Which network embeds, and how."""

    checkpoint: Path
    """Run folder (its newest checkpoint), a checkpoint file, or a .safetensors or .onnx file of `attfc export`; the
    metadata of the last must say that it takes RGB in [-1, 1]."""
    best: bool = False
    """Of a run folder: the network with the best verification during the run (best.pt)."""
    flip: bool = True
    """Add the embedding of the mirrored image, as `attfc verify` does; an ONNX file whose graph does this, or ends in
    unit length, is taken as it is."""
    batch_size: int = 64
    """Images embedded at a time."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""


def load(flags: NetworkFlags) -> nn.Module:
    """The network of the flags, on its device, in eval mode."""
    import torch

    from attfc_cuda.train.training import pick_device

    if flags.threads:
        torch.set_num_threads(flags.threads)
    return read(chosen(flags.checkpoint, flags.best))[0].to(pick_device(flags.device))


def chosen(checkpoint: Path, best: bool, flag: str = "checkpoint") -> Path:
    """The file or folder to read: with `best` that of a run's best network. flag: which names it, for an error."""
    if not best:
        return checkpoint
    from attfc_cuda.train.best import path_of_best

    if checkpoint.is_file():
        raise error("best", flag, "be a run folder", checkpoint, "a file is read as it is: leave --best out")
    return path_of_best(run_folder(checkpoint))


def read(path: Path) -> tuple[nn.Module, str]:
    """The network of a run folder, a checkpoint or an exported file, on the CPU in eval mode, and its name."""
    if path.suffix == ".onnx":
        from attfc_cuda.onnx_network import OnnxNetwork

        exported = OnnxNetwork(path)
        return exported, exported.description.backbone or path.stem
    if path.suffix == ".safetensors":
        from attfc_cuda.export import from_safetensors

        return from_safetensors(path), path.stem
    from attfc_cuda.train import load_backbone

    return load_backbone(path)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint, or the folder itself, belongs to."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def embed(
    flags: NetworkFlags, network: nn.Module, source: str, *, unit: bool = True, on_bad_image: str = "skip"
) -> NamedEmbeddings:
    """The embeddings of the images that `source` names; what was found and left out goes to stderr."""
    import sys

    from attfc_cuda._error import printable
    from attfc_cuda.evaluation.fingerprint import embedding_kind
    from attfc_cuda.evaluation.named_images import embed_named, find_images

    images = find_images(source, network.image_size, on_bad_image)  # type: ignore[arg-type]
    if images.report:
        print(printable_lines(images.report), file=sys.stderr)
    embedded = embed_named(
        network,
        images,
        on_bad_image=on_bad_image,
        flip=embedding_kind(network, flags.flip)[1],
        unit=unit,
        batch_size=flags.batch_size,
    )
    for message in embedded.unreadable[:5]:
        print(printable(f"attfc: left out: {message}"), file=sys.stderr)
    if len(embedded.unreadable) > 5:
        print(f"attfc: left out: {len(embedded.unreadable)} images in all", file=sys.stderr)
    return embedded


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    from attfc_cuda._error import printable

    return "\n".join(map(printable, text.split("\n")))

"""The flags that commands which embed images share, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from attfc_cuda.evaluation.named_images import NamedEmbeddings


@dataclass(kw_only=True)
class NetworkFlags:
    """Which network embeds, and how."""

    checkpoint: Path
    """Run folder (its newest checkpoint), a checkpoint file, or a .safetensors file of `attfc export`."""
    flip: bool = True
    """Add the embedding of the mirrored image, as `attfc verify` does."""
    batch_size: int = 64
    """Images embedded at a time."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""


def load(flags: NetworkFlags) -> nn.Module:
    """The network of the flags, on its device, in eval mode."""
    import torch

    from attfc_cuda.export import from_safetensors
    from attfc_cuda.train import load_backbone
    from attfc_cuda.train.training import pick_device

    if flags.threads:
        torch.set_num_threads(flags.threads)
    if flags.checkpoint.suffix == ".safetensors":
        network: nn.Module = from_safetensors(flags.checkpoint)
    else:
        network = load_backbone(flags.checkpoint)[0]
    return network.to(pick_device(flags.device))


def embed(
    flags: NetworkFlags, network: nn.Module, source: str, *, unit: bool = True, on_bad_image: str = "skip"
) -> NamedEmbeddings:
    """The embeddings of the images that `source` names; what was found and left out goes to stderr."""
    import sys

    from attfc_cuda._error import printable
    from attfc_cuda.evaluation.named_images import embed_named, find_images

    images = find_images(source, network.image_size, on_bad_image)  # type: ignore[arg-type]
    if images.report:
        print(printable_lines(images.report), file=sys.stderr)
    embedded = embed_named(
        network, images, on_bad_image=on_bad_image, flip=flags.flip, unit=unit, batch_size=flags.batch_size
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

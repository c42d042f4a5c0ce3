"""What a threshold and a gallery are for: one network, and one kind of embedding of it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import nn

from attfc_cuda._tensors_from_files import without_wrappers

PIXELS, PLAIN, MIRRORED = "pixels", "plain", "mirrored sum"


class MadeBy(NamedTuple):
    """What made embeddings: only those of one network and one kind are compared.

    Attributes:
        network: Its `fingerprint`.
        embedding: The kind, see `embedding_kind`.
    """

    network: str
    embedding: str


def made_by(backbone: nn.Module, flip: bool) -> MadeBy:
    """For embeddings that are made with `flip`."""
    return MadeBy(fingerprint(backbone), embedding_kind(backbone, flip)[0])


def embedding_kind(backbone: nn.Module | None, flip: bool) -> tuple[str, bool]:
    """The word for what is compared, and whether the mirrored image's embedding is to be added for it: not to one that
    a graph has added already, or has brought to unit length (`onnx_network.OnnxNetwork`)."""
    if backbone is None:
        return PIXELS, False
    if getattr(backbone, "embeds_whole", False):
        return str(backbone.embedding), False
    return (MIRRORED, True) if flip else (PLAIN, False)


def fingerprint(backbone: nn.Module) -> str:
    """Of the network's tensors: 16 hexadecimal digits of a SHA-256 over names, shapes and values, the same on every
    device and under every wrapper."""
    given = getattr(backbone, "fingerprint", None)
    if isinstance(given, str):  # a network that is no module of ours, such as one in an ONNX file, brings its own
        return given
    digest = hashlib.sha256()
    for name, tensor in sorted((without_wrappers(key), value) for key, value in backbone.state_dict().items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]

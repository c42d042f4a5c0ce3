"""What an ONNX file of `attfc export` says of itself, and the file as a network that these commands can run.

A runtime takes whatever three channels it is given: that they are RGB in [-1, 1] stands in the file's metadata, and a
file that says otherwise, or nothing, is refused here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda.evaluation.fingerprint import MIRRORED, PLAIN

FORMAT = "attfc-onnx-1"
# The only input that data.normalize_images makes, and so the only one that a file may ask for.
INPUT = {"color": "RGB", "value_range": "-1 to 1", "normalization": "(pixel - 127.5) / 127.5"}


class OnnxDescription(NamedTuple):
    """The metadata of a file.

    Attributes:
        backbone: name of the network.
        image_size: side of its images in pixels.
        embedding_dim: length of an embedding.
        embedding: "plain", or "mirrored sum" where the graph adds the mirrored image's embedding.
        unit: whether the graph brings embeddings to unit length.
        network: fingerprint of the network's tensors.
        thresholds: rate (as text) -> what `attfc verify` wrote of its operating point, for embeddings compared by
            their cosine; empty where none are known.
        thresholds_set: the verification set that they are from.
    """

    backbone: str
    image_size: int
    embedding_dim: int
    embedding: str
    unit: bool
    network: str
    thresholds: dict[str, Any]
    thresholds_set: str

    def to_metadata(self) -> dict[str, str]:
        """Strings by name, as ONNX has them."""
        return {
            "format": FORMAT,
            **INPUT,
            "input_size": f"3 x {self.image_size} x {self.image_size}",
            "image_size": str(self.image_size),
            "embedding_dim": str(self.embedding_dim),
            "backbone": self.backbone,
            "embedding": self.embedding,
            "unit_length": json.dumps(self.unit),
            "network": self.network,
            "thresholds": json.dumps(self.thresholds),
            "thresholds_embedding": self.embedding,
            "thresholds_set": self.thresholds_set,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str | os.PathLike) -> OnnxDescription:
        """The description in a file's metadata.

        Raises:
            ValueError: for a file that is not of `attfc export`, asks for another input, or has damaged metadata.
        """
        if metadata.get("format") != FORMAT:
            remedy = "the order of its channels and their range are not known: export it with attfc export"
            raise error(
                "from_onnx", "path", f"carry the metadata of {FORMAT}", f"{dict(metadata) or None} in {path}", remedy
            )
        for name, wanted in INPUT.items():
            if metadata.get(name) != wanted:
                raise error("from_onnx", f"{name} in {path}", f"be {wanted}", metadata.get(name))
        try:
            found = cls(
                metadata["backbone"],
                int(metadata["image_size"]),
                int(metadata["embedding_dim"]),
                metadata["embedding"],
                json.loads(metadata["unit_length"]),
                metadata["network"],
                json.loads(metadata["thresholds"]),
                metadata["thresholds_set"],
            )
        except (KeyError, ValueError) as cause:
            raise error("from_onnx", "path", "carry whole metadata", f"{path} ({cause!r})") from cause
        if found.embedding not in (PLAIN, MIRRORED):
            raise error("from_onnx", f"embedding in {path}", f"be {PLAIN} or {MIRRORED}", found.embedding)
        if metadata.get("thresholds_embedding") != found.embedding:
            got = f"{metadata.get('thresholds_embedding')}, and embeddings that are {found.embedding}"
            raise error("from_onnx", f"thresholds in {path}", "be for the embedding of the graph", got)
        if not isinstance(found.thresholds, dict):
            raise error("from_onnx", f"thresholds in {path}", "be an object", type(found.thresholds).__name__)
        return found


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: float32 images [B, 3, S, S] to embeddings [B, D], by onnxruntime on the CPU.

    Args:
        path: The file.

    Attributes:
        description: Its metadata.
        image_size: S.
        embedding_dim: D.
        fingerprint: Of the network that was exported.
        embedding: Its kind, see `OnnxDescription`.
        embeds_whole: Whether the graph ends in the embedding to compare, to which no mirrored image's can be added.

    Raises:
        ImportError: Without onnxruntime.
        ValueError: For what is no ONNX file, for another input than RGB in [-1, 1], and for an input whose shape is not
            the one that the metadata names.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as cause:
            remedy = 'pip install "attfc_cuda[export]"'
            raise error("from_onnx", "onnxruntime", "be installed", f"none ({cause})", remedy, ImportError) from cause
        if not Path(path).is_file():
            raise error("from_onnx", "path", "exist", f"no such file {path}", kind=FileNotFoundError)
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as cause:  # onnxruntime's errors have no common base but this
            got = f"{path} ({' '.join(str(cause).split())[:300]})"
            raise error("from_onnx", "path", "be an ONNX file", got) from cause
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.description = OnnxDescription.from_metadata(metadata, path)
        self.image_size, self.embedding_dim = self.description.image_size, self.description.embedding_dim
        self.fingerprint, self.embedding = self.description.network, self.description.embedding
        self.embeds_whole = self.embedding == MIRRORED or self.description.unit
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [[*i.shape[1:], i.type] for i in inputs] + [o.shape[1:] for o in outputs]
        expected = [[3, self.image_size, self.image_size, "tensor(float)"], [self.embedding_dim]]
        if shapes != expected:
            raise error("from_onnx", f"graph of {path}", f"have an input and an output as {expected}", shapes)

    def forward(self, images: Tensor) -> Tensor:
        feed = {self._session.get_inputs()[0].name: images.float().cpu().numpy()}
        return torch.from_numpy(self._session.run(None, feed)[0]).to(images.device)


def thresholds_for(
    source: Path | None, folder: Path, network: str, embedding: str
) -> tuple[dict[str, Any], str, Path | None]:
    """The thresholds that `attfc verify` found for a network and a kind of embedding.

    Args:
        source: A JSON file of `attfc verify`; None: those in `folder` and its `verify/`, of which the one with the most
            impostor pairs that fits is taken.
        folder: Of the run.
        network: Fingerprint.
        embedding: Kind.

    Returns:
        Rate -> operating point, the name of the set, and the file; nothing and None where `folder` has none.

    Raises:
        ValueError: For a `source` that is for another network or another kind of embedding, or no such file.
    """
    if source is not None:
        found = _verified(source)
        if found is None:
            raise error("export", "thresholds", "be a JSON file that attfc verify wrote", source)
        if found["network"] != network:
            got = f"{found['network']} in {source}"
            raise error(
                "export", "thresholds", f"be those of this network, {network}", got, "verify the same checkpoint"
            )
        if found["embedding"] != embedding:
            remedy = "leave --flip out" if embedding == MIRRORED else "export with --flip, or verify with --no-flip"
            got = f"{found['embedding']} in {source}"
            raise error("export", "thresholds", f"be for the {embedding} embedding", got, remedy)
        return found["at_far"], source.stem, source
    fitting = [
        (found["num_impostors"], path, found)
        for path in sorted([*folder.glob("*.json"), *folder.glob("verify/*.json")])
        if (found := _verified(path)) is not None and (found["network"], found["embedding"]) == (network, embedding)
    ]
    if not fitting:
        return {}, "", None
    _, path, found = max(fitting, key=lambda item: item[:2])
    return found["at_far"], path.stem, path


def _verified(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("at_far"), dict) and "num_impostors" in found
    return found if whole and {"network", "embedding"} <= found.keys() else None

"""A trained backbone for others to use: ONNX for any runtime, safetensors for any PyTorch. `attfc export` writes them.

The network alone, in eval mode: float images [B, 3, image_size, image_size], RGB in [-1, 1] (`data.normalize_images`),
to embeddings [B, embedding_dim], not normalised unless that is asked for. Compare them by their cosine. Files appear
whole or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attfc_cuda import backbones
from attfc_cuda._check import error
from attfc_cuda._files import replacing
from attfc_cuda._tensors_from_files import network_state, require_fit, without_wrappers
from attfc_cuda.backbones.options_from_files import options_from_file
from attfc_cuda.evaluation.fingerprint import MIRRORED, PLAIN, fingerprint
from attfc_cuda.onnx_network import OnnxDescription

SUFFIXES = (".onnx", ".safetensors")
TOLERANCE = 1e-4  # of a component of a unit embedding, between torch and onnxruntime
FORMAT = "attfc-backbone-1"
_CHECKED_BATCHES = (1, 3)


class _Embedder(nn.Module):
    """The network with what may follow it: the mirrored image's embedding added, unit length."""

    def __init__(self, backbone: nn.Module, flip: bool, unit: bool) -> None:
        super().__init__()
        self.backbone, self.flip, self.unit = backbone, flip, unit

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.backbone(images)
        if self.flip:
            embeddings = embeddings + self.backbone(images.flip(-1))
        return F.normalize(embeddings) if self.unit else embeddings


def to_onnx(
    backbone: nn.Module,
    path: str | os.PathLike,
    name: str = "",
    *,
    flip: bool = False,
    unit: bool = False,
    thresholds: dict[str, Any] | None = None,
    thresholds_set: str = "",
) -> float:
    """Write `backbone` as one ONNX file: "images" [batch, 3, S, S] to "embeddings" [batch, D], the batch dynamic.

    The file's metadata says what it takes and gives (`onnx_network.OnnxDescription`): RGB, value range, size,
    normalisation, length and kind of the embeddings, the network, and the thresholds.

    Args:
        backbone: a `backbones.Backbone` (its `image_size` is S), on any device; exported in eval mode in float32,
            whatever its dtype (onnxruntime 1.32 has no convolution in bfloat16), and left as it was.
        path: the file.
        name: of the network, for the metadata.
        flip: the graph adds the mirrored image's embedding, as `attfc verify` does.
        unit: the graph brings embeddings to unit length.
        thresholds: rate -> operating point, for this network and this kind of embedding (`at_far` in the JSON of
            `attfc verify`).
        thresholds_set: the set that they were found on.

    Returns:
        The largest difference between a component of torch's and of onnxruntime's unit embeddings, over random images
        in batches of 1 and 3.

    Raises:
        ArithmeticError: when that is above `TOLERANCE`, with no file written.
        ImportError: naming what to install.
    """
    _need("to_onnx", "onnxscript")
    runtime, path = _need("to_onnx", "onnxruntime"), Path(path)
    size: Any = backbone.image_size
    dim: Any = backbone.embedding_dim
    description = OnnxDescription(
        name, size, dim, MIRRORED if flip else PLAIN, unit, fingerprint(backbone), thresholds or {}, thresholds_set
    )
    dtypes = {tensor.dtype for tensor in backbone.state_dict().values() if tensor.is_floating_point()}
    if dtypes != {torch.float32}:
        backbone = copy.deepcopy(backbone).float()
    with _in_eval_mode(backbone) as (network, device):
        network = _Embedder(network, flip, unit) if flip or unit else network
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for batch in _CHECKED_BATCHES]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter's own coming changes; the result is checked below
                program = torch.onnx.export(
                    network,
                    (images[-1].to(device),),
                    dynamo=True,
                    input_names=["images"],
                    output_names=["embeddings"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    verbose=False,
                )
            program.model.metadata_props.update(description.to_metadata())  # type: ignore[union-attr]
            program.save(part, external_data=False)  # type: ignore[union-attr]
            session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
            with torch.no_grad():
                largest = max(_difference(session, network, batch, device) for batch in images)
            if not largest <= TOLERANCE:
                rule = f"agree with torch to {TOLERANCE} in every component of a unit embedding"
                raise error("to_onnx", "backbone", rule, f"{largest:.2e}", kind=ArithmeticError)
    return largest


def to_safetensors(
    backbone: nn.Module, path: str | os.PathLike, name: str = "", options: dict[str, Any] | None = None
) -> None:
    """Write the parameters and buffers of `backbone` in the safetensors format, readable without running any code.

    Args:
        backbone: the network.
        path: the file.
        name: as for `backbones.build`; kept in the file's metadata together with options, embedding_dim and image_size,
            so that `from_safetensors` can build the network. Without a name, only the tensors are of use.
        options: as for `backbones.build`.

    Raises:
        ImportError: without the safetensors library.
        OSError: where the file cannot be written.
    """
    safetensors = _need("to_safetensors", "safetensors.torch")
    tensors = {without_wrappers(key): value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    build = {"name": name, "embedding_dim": backbone.embedding_dim, "image_size": backbone.image_size}
    metadata = {"format": "pt", "attfc": FORMAT, "build": json.dumps({**build, "options": options or {}})}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as part:
        safetensors.save_file(tensors, str(part), metadata)


def from_safetensors(path: str | os.PathLike) -> backbones.Backbone:
    """The backbone that `to_safetensors` wrote, on the CPU in eval mode.

    Raises:
        ValueError: naming a file that is damaged, that has NaN in a weight, or that was not written with the name of a
            network.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("attfc") != FORMAT:
        raise error("from_safetensors", "path", f"carry the metadata of {FORMAT}", f"{metadata or None} in {path}")
    try:
        build = json.loads(metadata["build"])
        options = options_from_file(build["name"], build["options"], path)
        make = functools.partial(backbones.build, build["name"], build["embedding_dim"], build["image_size"], **options)
        tensors = network_state(tensors)
        if not build["name"].startswith(backbones.TIMM_PREFIX):  # not all of those build without memory
            require_fit(make, tensors)
        network = make()
        network.load_state_dict(tensors)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as cause:
        got = f"{path} ({' '.join(str(cause).split())[:300]})"
        raise error("from_safetensors", "path", "hold a network of `backbones.build` and its tensors", got) from cause
    return network.eval()


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises:
        ValueError: naming a file that is damaged.
        ImportError: without the safetensors library.
    """
    safetensors = _need("from_safetensors", "safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as cause:
        raise error("from_safetensors", "path", "be a safetensors file", f"{path} ({cause})") from cause


def _difference(session: Any, network: nn.Module, images: Tensor, device: torch.device) -> float:
    (embeddings,) = session.run(None, {"images": images.numpy()})
    expected = network(images.to(device)).float().cpu()
    return float((F.normalize(torch.from_numpy(embeddings)) - F.normalize(expected)).abs().max())


def _need(function: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        library = module.partition(".")[0]
        got, remedy = f"none ({cause})", 'pip install "attfc_cuda[export]"'
        raise error(function, library, "be installed", got, remedy, kind=ImportError) from cause


@contextlib.contextmanager
def _in_eval_mode(backbone: nn.Module) -> Iterator[tuple[nn.Module, torch.device]]:
    """The network in eval mode with its device; afterwards every module is in the mode it was in."""
    training = [module for module in backbone.modules() if module.training]
    try:
        yield backbone.eval(), next(backbone.parameters()).device
    finally:
        for module in training:
            module.training = True

"""Tensors of a file that somebody else wrote: none is larger than what is stored of it, all are plain.

A .pt file states a shape, strides and a storage apart: a stride of 0 makes a shape of gigabytes over four stored bytes,
which costs its memory at the first copy. So it is looked at here, before anything is made in its size.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attfc_cuda._error import error

HOLDERS = ("backbone", "state_dict_backbone", "state_dict", "model_state_dict", "model")
"""Keys under which files keep a network: our runs, InsightFace's whole states, Lightning and most others."""
PREFIXES = ("", "features.module.", "features.", "backbone.", "model.", "model.backbone.", "net.")
"""What training scripts put before a network's names, beside the `module.` of DistributedDataParallel and the
`_orig_mod.` of torch.compile: MagFace, most others, AdaFace and Lightning, CVLface."""
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's
_COMPILED = _WRAPPERS[1].rstrip(".")
_DEEPEST = 64


def require_stored(path: Path) -> bool:
    """Whether the file at `path` is a zip archive, as torch writes since 1.6.

    Raises:
        ValueError: for an archive that unpacks to more than it has, or that is damaged. torch compresses nothing.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as cause:
        raise ValueError(str(cause)) from cause
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"it unpacks to {unpacked} bytes, more than its {size}, or is compressed")
    return True


def read_tensors(path: Path, function: str, argument: str = "path") -> Any:
    """What a .pt file holds: tensors, numbers and strings, in dicts and lists. No code in it runs.

    Args:
        path: The file.
        function: For the message, as is argument.
        argument: See there.

    Raises:
        ValueError: Naming the file, whatever is wrong with it.
    """
    try:
        # Only the zip format can be mapped; files of before torch 1.6 are read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=require_stored(path))
        require_plain(state)
    except FileNotFoundError as cause:
        raise error(function, argument, "exist", f"no file {path}") from cause
    except Exception as cause:  # damage can fail in any place of zipfile, pickle and torch
        reason = str(cause).strip().split("\n", 1)[0].rstrip(".") or type(cause).__name__
        got = f"{path}, which does not load ({reason})"
        raise error(function, argument, "be a checkpoint of tensors", got) from cause
    return state


def require_plain(value: Any, name: str = "") -> None:
    """Demand of every tensor in nested dicts, lists and tuples that it is dense, in memory, and wholly stored.

    Raises:
        ValueError: naming the first that is not, as "backbone.fc.weight".
    """
    stack: list[tuple[str, Any, int]] = [(name, value, 0)]
    while stack:
        name, value, depth = stack.pop()
        if depth > _DEEPEST:
            raise ValueError(f"{name[:80]} lies more than {_DEEPEST} levels deep")
        if isinstance(value, Tensor):
            _require_plain_tensor(name or "the tensor", value)
        elif isinstance(value, Mapping):
            stack += [(f"{name}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            stack += [(f"{name}[{index}]", item, depth + 1) for index, item in enumerate(value)]


def network_in(state: Any) -> Any:
    """What lies under the first of `HOLDERS`, if it is a dict; inside of that, again."""
    while isinstance(state, Mapping):
        inner = next((state[key] for key in HOLDERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    return state


def behind(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it; the rest is a head's."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def network_state(state: Any) -> dict[str, Tensor]:
    """A network's state_dict from a file, without the names that DistributedDataParallel ("module.") and torch.compile
    ("_orig_mod.") put around it.

    Raises:
        ValueError: for what is no dict of tensors by name, a tensor that is not plain, two that have one name, and
            numbers that are not finite.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{type(state).__name__} in place of a state_dict")
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"a tensor called {key!r:.80}, which is no name")
        if not isinstance(value, Tensor):
            raise ValueError(f"{type(value).__name__} at {key[:80]!r}")
        _require_plain_tensor(key, value)
        if value.is_floating_point() and not all(
            bool(part.isfinite().all()) for part in value.reshape(-1).split(2**24)
        ):
            raise ValueError(f"NaN or infinite numbers in {key[:80]}")
        name = without_wrappers(key)
        if name in named:
            raise ValueError(f"two tensors called {name[:80]}")
        named[name] = value
    return named


def require_fit(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """Demand that the network that `build` makes has the shapes of `state`, before memory is taken for it: the sizes
    that a file states beside its tensors may be any.

    Raises:
        ValueError: naming the first tensor that is missing or has another shape.
    """
    with torch.device("meta"):
        expected = build().state_dict()
    for name, tensor in expected.items():
        if name not in state:
            if tensor.dim() == 0:  # a counter of BatchNorm, which old files lack
                continue
            raise ValueError(f"no {name}")
        if state[name].shape != tensor.shape:
            raise ValueError(f"{name} of shape {list(state[name].shape)}, not {list(tensor.shape)}")


def without_wrappers(name: str) -> str:
    """ "module._orig_mod.fc.weight" -> "fc.weight"; torch.compile's name is dropped from the middle too."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _require_plain_tensor(name: str, tensor: Tensor) -> None:
    name = name[:80]
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{name} is {'quantized' if tensor.layout == torch.strided else tensor.layout}, not dense")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on the device {tensor.device.type}, without numbers")
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored:
        raise ValueError(f"{name} of shape {list(tensor.shape)} needs {needed} bytes, of which {stored} are stored")

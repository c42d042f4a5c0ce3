"""Files of tensors: a run's checkpoints, and the backbones and class centres of strangers.

The networks are those of the package with few channels, so that a file has kilobytes and an input takes milliseconds.
timm is a stand-in that knows every model and demands of each option what `TIMM_OPTIONS` promises.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import struct
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzz_parts import SIZE, Target, changed_value, check_named, check_printable, odd_value
from torch import Tensor, nn

from attfc_cuda import FullyConnected, backbones, export
from attfc_cuda._error import is_worded
from attfc_cuda.backbones import iresnet, small
from attfc_cuda.backbones.options_from_files import TIMM_OPTIONS
from attfc_cuda.compat.insightface import checkpoints as insightface
from attfc_cuda.train import AttFCObjective, TrainConfig, checkpoint, load_backbone
from attfc_cuda.train.training import Training

_DIM, _CLASSES = 8, 9
_CHANNELS, _BLOCKS = (8, 8, 8, 8), {18: (1, 1, 1, 1)}
# A Training to resume in each folder, and in the same with --carry-classes.
_TRAININGS: dict[Path, list[Training]] = {}


def _create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    for option, value in options.items():
        assert option in TIMM_OPTIONS, f"timm got {option}={value!r} from a file"
        assert not isinstance(value, str) or "/" not in value and "." not in value, f"timm got {option}={value!r}"
    if not 0 < num_classes < 1000:
        raise ValueError(f"{num_classes} classes")
    return nn.Linear(3, num_classes)


_STAND_IN = types.ModuleType("timm")
_STAND_IN.is_model = lambda name: True  # type: ignore[attr-defined]
_STAND_IN.get_pretrained_cfg = lambda name: None  # type: ignore[attr-defined]
_STAND_IN.create_model = _create_model  # type: ignore[attr-defined]


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (iresnet, "STAGE_CHANNELS", _CHANNELS), (insightface, "STAGE_CHANNELS", _CHANNELS),
            (iresnet, "STAGE_BLOCKS", _BLOCKS), (insightface, "STAGE_BLOCKS", _BLOCKS),
            (small, "STEM_CHANNELS", 16), (small, "STAGES", ((16, 1),)), (small, "STRIDES_OF_TWO", 2),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch.dict(sys.modules, {"timm": _STAND_IN}))
        yield


def saved(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def odd_tensor(value: Any, rng: random.Random) -> Any:
    """A tensor of another shape, dtype, layout or device; of numbers that are not finite; that claims more than it
    stores; or no tensor."""
    if not isinstance(value, Tensor):
        return odd_value(value, rng) if rng.random() < 0.8 else torch.zeros(rng.choice((0, 1, 7)))
    kind = rng.randrange(12)
    if value.numel() > 1 << 20:
        return value  # one number seen as gigabytes, from an earlier change
    if kind < 3:
        if rng.random() < 0.4 and value.dim():
            return torch.zeros(1).expand(rng.choice(([2**40], [*value.shape[:-1], 2**33], list(value.shape))))
        return torch.zeros(rng.choice(([], [0], [1], [2, 3], [*value.shape, 1], [*value.shape[:-1], 0])))
    if kind < 5:
        dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
        return value.to(rng.choice(dtypes))
    if kind == 5:
        if value.is_floating_point():
            return torch.full_like(value, rng.choice((float("nan"), float("inf"), -1, 2**31)))
        return value.long() + rng.choice((1, -1, 2**31, 2**62))
    if kind == 6:
        return value.flatten()[: value.numel() // 2] if value.numel() else value
    if kind == 7:
        return value.repeat(2, *[1] * (value.dim() - 1)) if value.dim() else value
    if kind == 8:
        return value.to_sparse() if value.dim() and value.is_floating_point() else value
    if kind == 9:
        return value.to("meta")
    if kind == 10:
        return value.as_strided(value.shape, [0] * value.dim()) if value.numel() else value
    return odd_value(0, rng)


def changed_archive(data: bytes, rng: random.Random) -> bytes:
    """A zip archive whose checksums are right: entries changed, cut, repeated, renamed, compressed or left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [[entry.filename, archive.read(entry)] for entry in archive.infolist()]
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    for _ in range(rng.choice((1, 1, 2))):
        pickles = [entry for entry in entries if entry[0].endswith("data.pkl")]
        entry = rng.choice(pickles) if pickles and rng.random() < 0.6 else rng.choice(entries)
        content, kind = bytearray(entry[1]), rng.randrange(7)
        at = rng.randrange(len(content) + 1)
        if kind < 3 and content:
            for _ in range(rng.choice((1, 1, 4))):
                content[rng.randrange(len(content))] = rng.choice((rng.randrange(256), 0, 0x28, 0x4B, 0x52, 0x62, 0xFF))
        elif kind == 3:
            del content[at : at + rng.choice((1, 8, 100))]
        elif kind == 4:
            content[at:at] = content[at : at + 20] * rng.choice((1, 50))
        elif kind == 5:
            entry[0] = rng.choice((entry[0] + "x", "/" + entry[0], "../" + entry[0], rng.choice(entries)[0], "a"))
        elif len(entries) > 1:
            entries.remove(entry)
        entry[1] = bytes(content)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def changed_tensors(data: bytes, rng: random.Random) -> bytes:
    """A .pt file of other names, numbers and tensors; or with changes in its archive."""
    if rng.random() < 0.3:
        return changed_archive(data, rng)
    state = torch.load(io.BytesIO(data), weights_only=True)
    return saved(changed_value(state, rng, odd_tensor))


def checkpoint_seeds(folder: Path) -> list[bytes]:
    config = TrainConfig()
    config.dataset.data, config.dataset.image_size, config.dataset.batch_size = "procedural:16x4", SIZE, 8
    config.dataset.gallery_size, config.model.embedding_dim, config.run.device = 2, _DIM, "cpu"
    config.optim.steps, config.run.run, config.run.keep, config.verify.verify_num_pairs = 20, folder / "run", 9, 20
    config.run.threads, config.verify.verify_every = 1, 0
    with small_networks(), contextlib.redirect_stdout(io.StringIO()):
        whole = Training(config, AttFCObjective)
        path = whole.save()
        config.run.resume = config.run.carry_classes = True
        _TRAININGS[folder] = [whole, Training(config, AttFCObjective)]
    return [path.read_bytes()]


def run_checkpoint(data: bytes, folder: Path) -> bool:
    """As `attfc verify` and `attfc train --resume` read it, with --carry-classes for every other one."""
    path = folder / "run" / "checkpoints" / "step_00000000.pt"
    path.write_bytes(data)
    read = False
    with small_networks(), torch.random.fork_rng(devices=[]):
        try:
            checkpoint.load(path)
            read = True
        except checkpoint.CheckpointError as cause:
            return check_named(cause, path)
        try:
            load_backbone(path)
        except checkpoint.CheckpointError as cause:
            check_named(cause, path)
        try:
            _TRAININGS[folder][len(data) % 2].resume(lambda text: None)
        except ValueError as cause:
            assert isinstance(cause, checkpoint.CheckpointError) or is_worded(cause), repr(cause)
            check_printable(cause)
    return read


def changed_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """As `changed_tensors`; and packed names and numbers of images that unpack to much."""
    if rng.random() < 0.1:
        state = torch.load(io.BytesIO(data), weights_only=True)
        packed = zlib.compress(
            rng.choice((b"", b"a", b"a\0a", b"\0", b"ab\0" * 9, b"\0" * 2**25, b"1234567\0" * 2**22))
        )
        if rng.random() < 0.5:
            state["data"] = {"counts": torch.frombuffer(bytearray(packed), dtype=torch.uint8)}
        else:
            state["loader"] = {**state["loader"], "identities": base64.b85encode(packed).decode()}
        return saved(state)
    return changed_tensors(data, rng)


def backbone_seeds(folder: Path) -> list[bytes]:
    """Two .safetensors, an IResNet's .pt with the names that wrappers give, and a file of class centres."""
    seeds = []
    with small_networks():
        network = backbones.build("small", _DIM, SIZE)
        export.to_safetensors(network, folder / "a.safetensors", "small", {"norm": "batch"})
        seeds.append((folder / "a.safetensors").read_bytes())
        of_timm = backbones.build("timm:resnet18", _DIM, SIZE)
        export.to_safetensors(of_timm, folder / "a.safetensors", "timm:resnet18", {"drop_rate": 0.1})
        seeds.append((folder / "a.safetensors").read_bytes())
        state = backbones.build("iresnet18", _DIM, SIZE).state_dict()
    seeds.append(saved({f"module._orig_mod.{name}": value for name, value in state.items()}))
    seeds.append(saved({"state_dict_backbone": state, "state_dict_softmax_fc": {"weight": torch.zeros(_CLASSES, 4)}}))
    return seeds


def _is_archive(data: bytes) -> bool:
    return data.startswith(b"PK")


def run_backbone(data: bytes, folder: Path) -> bool:
    path = folder / ("model.pt" if _is_archive(data) or b"\x80\x02" in data[:16] else "model.safetensors")
    path.write_bytes(data)
    readers: list[Callable[[], object]] = [
        lambda: insightface.load_backbone(path),
        lambda: insightface.load_centers(FullyConnected(4, _CLASSES), path),
    ]
    if path.suffix == ".safetensors":
        readers = [lambda: export.from_safetensors(path)]
    read = False
    with small_networks():
        for reader in readers:
            try:
                reader()
                read = True
            except ValueError as cause:
                check_named(cause, path)
    return read


def changed_backbone(data: bytes, rng: random.Random) -> bytes:
    """Of a .safetensors file the header: names, dtypes, shapes and places of tensors, the network and its options."""
    if _is_archive(data):
        return changed_tensors(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.7:
        metadata = header["__metadata__"]
        build = changed_value(json.loads(metadata["build"]), rng, odd_value)
        if rng.random() < 0.4 and isinstance(build, dict) and isinstance(build.get("options"), dict):
            options = sorted(TIMM_OPTIONS) + ["checkpoint_path", "pretrained_cfg", "cache_dir", "features_only", "norm"]
            build["options"] = {**build["options"], rng.choice(options): odd_value(0, rng)}
        header["__metadata__"] = {**metadata, "build": json.dumps(build)}
    else:

        def odd(value: Any, rng: random.Random) -> Any:
            dtypes = ("F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X")
            return rng.choice(dtypes) if isinstance(value, str) and rng.random() < 0.8 else odd_value(value, rng)

        header = changed_value(header, rng, odd)
    text = json.dumps(header).encode()
    length = rng.choice((len(text),) * 20 + (len(text) + 1, 0, 2**63))
    return struct.pack("<Q", length) + text + data[8 + int.from_bytes(data[:8], "little") :]


CHECKPOINT = Target(checkpoint_seeds, run_checkpoint, changed_checkpoint, 0.15)
BACKBONE = Target(backbone_seeds, run_backbone, changed_backbone, 0.3)

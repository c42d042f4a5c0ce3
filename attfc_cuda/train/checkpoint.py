"""Checkpoints that survive a crash: written beside, synced, then renamed over; read without running any code in them.

A checkpoint is one dict of tensors, numbers and strings (`torch.load(weights_only=True)` suffices), at
`<run>/checkpoints/step_00001234.pt`. A file of that name is complete: the name appears only once its bytes are on the
disk. Where a run has several processes, a folder beside it that it names (`step_00001234.shards`) holds what is split
over them (`split_state`), and is complete before the file appears. Loading checks a checksum of every byte of both: the
file is a zip archive, which has one for each tensor, and it holds those of the shards. Only files that the run's
manifest names are ever deleted.
"""

from __future__ import annotations

import random
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from attfc_cuda._check import error, printable
from attfc_cuda._files import checksum, replacing, sync_folder
from attfc_cuda._tensors_from_files import require_plain, require_stored
from attfc_cuda.train import archive
from attfc_cuda.train.manifest import Manifest

FORMAT = "attfc-checkpoint-1"
_NAME = re.compile(r"step_(\d{8,})\.pt")
SHARDS = ".shards", ".again.shards"  # the second where a whole checkpoint of that step has the first
_PART = re.compile(r"\.(step_\d{8,}\.pt)\.\d+\.tmp")  # as `replacing` names what it writes


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not one of ours. The message names the file and the reason."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))  # a reason may hold what a stranger has written into the file


def announce(folder: Path, step: int) -> Path:
    """Name the checkpoint of `step` in the run's manifest, as `save` does, for whoever writes shards before it."""
    path = path_of(folder, step)
    Manifest(folder.parent).add([path])
    return path


def save(
    state: dict[str, Any],
    folder: Path,
    step: int,
    keep: int,
    streamed: Mapping[int, archive.Blocks] | None = None,
) -> Path:
    """Write `state` as the checkpoint of `step`, then delete all but the newest `keep` up to it.

    Checkpoints of later steps (they did not load, or the run went on from before them) are deleted too, once this one
    is safe. What the manifest in the folder above does not name stays.

    Args:
        state: Tensors, numbers and strings, in dicts and lists.
        folder: `<run>/checkpoints`; made where it is not there.
        step: Steps done.
        keep: Number of checkpoints that stay.
        streamed: Where the bytes of storages come from that have changed since, see `archive.write`.

    Returns:
        The file's path.

    Raises:
        OSError: Naming the file where it cannot be written; those that were there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, step)
    try:
        announce(folder, step)
        own = Manifest(folder.parent)
        sweep(folder, path)
        with replacing(path) as part, open(part, "wb") as file:
            archive.write({"format": FORMAT, "step": step, **state}, file, streamed)
    except OSError as cause:
        remedy = "the checkpoints before it are whole: make room, then --resume"
        raise error("checkpoint", str(path), "be written", cause, remedy, OSError) from cause
    sync_folder(folder)
    for shards in _shard_folders(path):
        if shards != path.with_suffix(state.get("shards", "")):
            shutil.rmtree(shards, ignore_errors=True)
    paths = [p for p in find(folder) if p in own]
    newest = paths.index(path)
    old = paths[:newest] + paths[newest + keep :]
    delete(old)
    own.forget(old)
    return path


def delete(paths: list[Path]) -> None:
    """Remove checkpoints, each with what is beside it."""
    for path in paths:
        path.unlink(missing_ok=True)
        for shards in _shard_folders(path):
            shutil.rmtree(shards, ignore_errors=True)


def shards_of(path: Path, state: Mapping[str, Any]) -> Path:
    """The folder beside a checkpoint for what is split over processes.

    state: What the file at `path` holds. Those of earlier releases do not say which of the two: there was one.
    """
    return path.with_suffix(state.get("shards", SHARDS[0]))


def free_shards(path: Path) -> str:
    """Of `SHARDS` that which no whole checkpoint at `path` uses, for one that is to be written there."""
    first, second = SHARDS
    try:
        return second if path.exists() and load(path, mapped=True).get("shards", first) == first else first
    except CheckpointError:
        return first


def _shard_folders(path: Path) -> list[Path]:
    """All that a save to `path` may have made there."""
    return [path.with_suffix(suffix) for suffix in (*SHARDS, ".shards.tmp", ".shards.old")]


def path_of(folder: Path, step: int) -> Path:
    """The file of the checkpoint of `step`."""
    return folder / f"step_{step:08d}.pt"


def step_of(path: Path) -> int:
    """The inverse of `path_of`."""
    return int(_NAME.fullmatch(path.name)[1])  # type: ignore[index]


def find(folder: Path) -> list[Path]:
    """The files in `folder` that have the name of a checkpoint, newest first."""
    return sorted((path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)), key=step_of, reverse=True)


def nothing_to_resume(folder: Path) -> CheckpointError:
    """The error for a folder without checkpoints."""
    return CheckpointError(f"checkpoint: {folder} must hold a step_*.pt file, got none; start without --resume")


def load(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read one checkpoint to the CPU.

    Args:
        path: The file.
        mapped: Leave the tensors in the file, which the system reads as they are looked at, and drops again where
            memory is short: for one who copies what he needs and lets the rest go. Meanwhile nobody may shorten it.

    Raises:
        CheckpointError: Naming the file and why it cannot be used, whatever is wrong with it.
    """
    try:
        require_stored(path)
        # torch does not look at the archive's checksums: a flipped bit would be another weight.
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} in it is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        require_plain(state)
    except FileNotFoundError as cause:
        raise CheckpointError(f"checkpoint: {path} must exist, got no such file") from cause
    except Exception as cause:  # damage can fail in any place of zipfile, pickle and torch
        reason = str(cause).split("\n", 1)[0].rstrip(".") or type(cause).__name__
        got = f"{path.stat().st_size} bytes that do not load ({reason})"
        raise CheckpointError(f"checkpoint: {path} must be a complete checkpoint, got {got}") from cause
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        held = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint: {path} must hold format {FORMAT!r}, got {held!r:.80}")
    for name in ("step", "processes"):
        number = state.get(name, 1 if name == "processes" else None)
        if type(number) is not int or not 0 <= number < 2**62:
            raise CheckpointError(f"checkpoint: {path} must hold a whole number as {name}, got {number!r:.80}")
    if (suffix := state.get("shards", SHARDS[0])) not in SHARDS:
        raise CheckpointError(f"checkpoint: {path} must have its shards in one of {SHARDS}, got {suffix!r:.80}")
    shards = shards_of(path, state)
    if state.get("processes", 1) > 1 and not (shards / ".metadata").is_file():
        raise CheckpointError(f"checkpoint: {path} must have its shards beside it, got no {shards.name}")
    checksums = state.get("shards_crc32", {})
    if not isinstance(checksums, dict) or not all(isinstance(name, str) for name in checksums):
        raise CheckpointError(f"checkpoint: {path} must hold the checksums of its shards, got {checksums!r:.80}")
    for name, crc in checksums.items():
        part = shards / name
        if not part.is_file() or checksum(part) != crc:
            got = "a damaged file" if part.is_file() else "no such file"
            raise CheckpointError(f"checkpoint: {part} must be as it was written, got {got}")
    return state


def load_newest(folder: Path, say: Callable[[str], None] = print, mapped: bool = False) -> dict[str, Any]:
    """The newest checkpoint in `folder` that loads; each newer one that does not is reported through `say`.

    mapped: as in `load`.

    Raises:
        CheckpointError: when there is none, or none loads.
    """
    paths = find(folder)
    if not paths:
        raise nothing_to_resume(folder)
    for path in paths:
        try:
            return load(path, mapped)
        except CheckpointError as cause:
            say(f"{cause}; trying the one before")
    raise CheckpointError(f"checkpoint: {folder} must hold a checkpoint that loads, got {len(paths)} that do not")


def open_any(path: Path, say: Callable[[str], None] = print, mapped: bool = False) -> dict[str, Any]:
    """A checkpoint from its file, from a checkpoints folder, or from a run folder (the newest that loads).

    mapped: as in `load`.
    """
    if path.is_dir():
        return load_newest(path / "checkpoints" if (path / "checkpoints").is_dir() else path, say, mapped)
    return load(path, mapped)


def rng_state() -> dict[str, Any]:
    """The state of every random generator a run may draw from: torch (CPU and GPUs), numpy, random.

    The long ones as tensors: as Python numbers they would be most of the objects in a checkpoint.
    """
    name, keys, *rest = cast(tuple, np.random.get_state())
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, torch.tensor(internal), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. GPU states are put back as far as there are GPUs."""
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))


def sweep(folder: Path, path: Path) -> None:
    """Remove what killed or failed writes of the run have left, but for the shards that `path` is to be the file of.
    The run's lock says that nobody is writing them."""
    own = Manifest(folder.parent)
    for left in [p for p in own.paths() if p.parent == folder and p != path and not p.exists()]:
        for shards in _shard_folders(left):
            shutil.rmtree(shards, ignore_errors=True)
    for part in folder.glob(".step_*.tmp"):
        name = _PART.fullmatch(part.name)
        if name and folder / name[1] in own:
            part.unlink(missing_ok=True)

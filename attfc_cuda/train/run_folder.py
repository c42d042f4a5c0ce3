"""The folder of a run: which files in it are the run's own, and that one process at a time works there.

`manifest.json` names every file that runs have made in the folder. Nothing else is ever replaced or deleted: a
checkpoint that somebody has put there, another program's `config.json` or TensorBoard events stay. `run.lock` exists
while a run works there; it names the process and the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attfc_cuda._error import error
from attfc_cuda.train import checkpoint
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.manifest import Manifest

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
CONFIG, LOG, CHECKPOINTS = "config.json", "log.jsonl", "checkpoints"
_held: set[Path] = set()


class RunRemoved(FileNotFoundError):
    """The run folder was removed while the run was working. The message names the checkpoint that was saved anew."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made where it is not there. The system frees it however we end.

    Raises:
        BlockingIOError: Naming the process that holds it.
    """
    path = folder.absolute() / LOCK
    if path in _held:
        raise _taken(folder, {"pid": os.getpid(), "host": socket.gethostname()})
    folder.mkdir(parents=True, exist_ok=True)
    file = _acquired(path, folder)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def refuse_if_locked(folder: Path) -> None:
    """Raise BlockingIOError where another process holds the lock; changes nothing."""
    path = folder.absolute() / LOCK
    if path in _held:
        raise _taken(folder, {"pid": os.getpid(), "host": socket.gethostname()})
    if path.is_file():
        with open(path, "r+", encoding="utf-8") as file:
            _try_lock(file, folder)


def _acquired(path: Path, folder: Path) -> Any:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        try:
            _try_lock(file, folder)
            # The one who held it may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _try_lock(file: Any, folder: Path) -> None:
    # Not flock: a worker process would inherit that, and hold it for a moment after its parent was killed.
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        file.seek(0)
        try:
            holder = json.loads(file.read())
        except ValueError:
            holder = {}
        raise _taken(folder, holder if isinstance(holder, dict) else {}) from cause


def _taken(folder: Path, holder: dict[str, Any]) -> Exception:
    got = f"{folder}, where process {holder.get('pid', '?')} on {holder.get('host', '?')} is at work"
    remedy = "wait for it, stop it, or name another folder"
    return error("train", "run", "be a folder that no other run is using", got, remedy, BlockingIOError)


def check_folder(config: TrainConfig) -> None:
    """Look before any data are read whether the run may use its folder; changes nothing.

    Raises:
        ValueError: For a folder that holds another run, unless it is to be resumed or overwritten, or files that no
            run has made in places where this one would write.
        BlockingIOError: Where another process is using it.
        CheckpointError: Where there is nothing to resume.
    """
    run, folder = config.run, config.run.run
    if folder.exists() and not folder.is_dir():
        raise error("train", "run", "be a folder", f"{folder}, which is a file")
    refuse_if_locked(folder)
    found = checkpoint.find(folder / CHECKPOINTS)
    if run.resume:
        if not found:
            raise checkpoint.nothing_to_resume(folder / CHECKPOINTS)
        return
    if found and not run.overwrite:
        remedy = "add --resume to go on, --overwrite to start anew, or name another folder"
        raise error("train", "run", "be a folder without checkpoints", folder, remedy)
    own = _manifest_of(folder)
    in_the_way = [path for path in (folder / CONFIG, folder / LOG, *found) if path.exists() and path not in own]
    if in_the_way:
        rule, remedy = "hold no files of others where this run would write", "move them, or name another folder"
        raise error("train", "run", rule, f"{in_the_way[0]}, which is not in {own.path.name}", remedy)


def claim_folder(config: TrainConfig, step: int) -> Manifest:
    """Make the run folder this run's own, whose checkpoints up to `step` stay.

    Writes its config.json; of a run that is overwritten, the files that its manifest names are deleted.

    Returns:
        The manifest, for the files to come.
    """
    folder = config.run.run
    own = _manifest_of(folder)
    if config.run.overwrite and not config.run.resume:
        for path in own.paths():
            if path.name != LOCK:
                _delete(path)
        own.forget(own.paths())
    if config.run.resume:
        # The checkpoint that the run goes on from may have been put there by hand: it is the run's from here on.
        later = [p for p in checkpoint.find(folder / CHECKPOINTS) if checkpoint.step_of(p) > step and p not in own]
        if later:
            rule, remedy = "hold no checkpoints of others where this run would write", "move them away"
            raise error("resume", "run", rule, f"{later[0]}, which is not in {own.path.name}", remedy)
    own.add([folder / CONFIG, folder / LOG])
    config.save(folder / CONFIG)
    return own


def _manifest_of(folder: Path) -> Manifest:
    """The manifest; of a run from before there were manifests, what it must have made."""
    own = Manifest(folder)
    if own.path.exists() or not checkpoint.find(folder / CHECKPOINTS):
        return own
    with contextlib.suppress(ValueError):
        TrainConfig.load(folder / CONFIG)
        own.assume([folder / CONFIG, folder / LOG, *checkpoint.find(folder / CHECKPOINTS)])
    return own


def _delete(path: Path) -> None:
    if path.parent.name == CHECKPOINTS:
        checkpoint.delete([path])
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

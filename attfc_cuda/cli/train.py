"""`attfc train`: its flags are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attfc_cuda._error import error
from attfc_cuda.train.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    from attfc_cuda.train import Objective

Command = TrainConfig
_NO_DATA = ""


def defaults(flags: Sequence[str]) -> Command:
    """What the flags override: the settings of --config, or of the run that is resumed, or the usual ones."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--run", type=Path, default=RunConfig.run)
    finder.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False)
    finder.add_argument("--preset")
    found, _ = finder.parse_known_args(flags)
    if found.preset is not None and (found.resume or str(found.config) != "None"):
        remedy = "put it into the file's head group, or leave --config and --resume out"
        raise error("train", "preset", "start a run without a file of settings", found.preset, remedy)
    if found.config is not None and str(found.config) != "None":
        return TrainConfig.load(found.config)
    saved = found.run / "config.json"
    if found.resume and saved.is_file():
        return TrainConfig.load(saved)
    fresh = TrainConfig.from_dict({} if found.preset is None else {"head": {"preset": found.preset}})
    fresh.dataset.data = _NO_DATA  # from the command line faces are drawn on request only
    return fresh


def run(command: Command, objective_type: type[Objective] | None = None) -> int:
    """Train; exit code 0, or 128 + the number of the signal that stopped it."""
    from attfc_cuda.train import train
    from attfc_cuda.train.run_folder import check_folder

    if command.dataset.data == _NO_DATA:
        command.check()
        check_folder(command)
        remedy = "--data FOLDER with a folder for each identity, or --data procedural for drawn faces"
        raise error("train", "data", "be given", "none", remedy)
    outcome = train(command, objective_type)
    return 0 if outcome.signal is None else 128 + outcome.signal

"""The command line: `attfc train | verify | demo | pack | data | plan | export | import | info | kernels`.

A mistake of the user's is one line on stderr and exit code 2; `--debug` (or ATTFC_DEBUG=1) shows the traceback instead.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from attfc_cuda import export
from attfc_cuda._check import error
from attfc_cuda.compat.insightface import command as import_command
from attfc_cuda.compat.insightface.command import ImportCommand
from attfc_cuda.data import build_dataset
from attfc_cuda.data import command as data_command
from attfc_cuda.data.command import DataCommand, PackCommand
from attfc_cuda.demo import IDENTITIES, PASSES, demo, demo_config
from attfc_cuda.evaluation import find_suite
from attfc_cuda.evaluation import report as judge
from attfc_cuda.ops import backend as _backend
from attfc_cuda.ops import build as _build
from attfc_cuda.plan import command as plan_command
from attfc_cuda.plan.command import PlanCommand
from attfc_cuda.train import Objective, TrainConfig, train
from attfc_cuda.train.config import RunConfig
from attfc_cuda.train.training import pick_device
from attfc_cuda.train.validation import from_dataset, lists_in


@dataclass
class Verify:
    """Judge a backbone on pairs of faces: 10-fold accuracy, TAR at FAR, ROC and histogram."""

    checkpoint: Path | None = None
    """Checkpoint file, or a run folder (its newest checkpoint)."""
    backbone: str | None = None
    """`raw-pixels`: compare the pixels themselves, the floor for any network; None: the network in `checkpoint`."""
    pairs: str | None = None
    """Pair lists (tab-separated: path_a, path_b, same, fold; or LFW's pairs.txt), separated by commas."""
    root: Path | None = None
    """Folder the paths in `pairs` start from; None: the folder of each list."""
    suite: Path | None = None
    """Folder of verification sets, all of them judged: InsightFace's .bin files, pair lists, IJB folders."""
    data: str | None = None
    """Faces to make pairs from instead of a list: folders, or procedural:IDENTITIESxIMAGES@FIRST."""
    num_pairs: int = 6000
    """Pairs made from `data`, half of them of the same identity."""
    image_size: int | None = None
    """Side in pixels for raw-pixels; None: that of `checkpoint`, else 112."""
    flip: bool = True
    """Add the embedding of the mirrored image before comparing."""
    out: Path | None = None
    """Folder for the PNGs and JSONs; None: `verify` in the run folder, else runs/verify."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""


@dataclass
class Demo:
    """Train a small network on drawn faces for a few minutes, verify it on other drawn faces, and draw the results."""

    run: Path = Path("runs/demo")
    """Folder for the run, the table and the PNGs; an earlier demo in it is replaced."""
    identities: int = IDENTITIES
    """Number of drawn identities to train on, with 8 images each."""
    passes: float = PASSES
    """Length of the training in passes over all images."""
    seed: int = 0
    """Seed of initialisation, order, and augmentation."""


@dataclass
class Info:
    """Print what was built, what will be used here, and why not otherwise."""


@dataclass
class Kernels:
    """Compile the GPU kernels, with or without a GPU, and print registers, spills, shared memory and occupancy."""

    architectures: tuple[int, ...] = (80, 86, 89, 90, 100, 120)
    """Compute capabilities, major * 10 + minor. Each takes some ten seconds."""


Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[PackCommand, tyro.conf.subcommand("pack")]
    | Annotated[DataCommand, tyro.conf.subcommand("data")]
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[export.ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[ImportCommand, tyro.conf.subcommand("import")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Kernels, tyro.conf.subcommand("kernels")]
)


def main(argv: Sequence[str] | None = None, objective_type: type[Objective] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 after an error, 128 + signal after an interrupted training.

    objective_type: what `train` trains by, for a script that brings its own loss but wants everything around it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("ATTFC_DEBUG") == "1"
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return _run(arguments, objective_type)
    except KeyboardInterrupt:
        print("attfc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`head`, `less`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if debug:
            raise
        known = isinstance(problem, (ValueError, TypeError, OSError, ArithmeticError, ImportError))
        text = " ".join(str(problem).split()) or type(problem).__name__
        hint = "" if known else f" ({type(problem).__name__}; run again with --debug to see where)"
        print(f"attfc: {text}{hint}", file=sys.stderr)
        return 2


def _run(arguments: list[str], objective_type: type[Objective] | None) -> int:
    command = tyro.cli(
        _command_type(arguments),
        prog="attfc",
        description="Margin-softmax heads for face recognition. --debug with any command shows an error's traceback.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if isinstance(command, Info):
        print(_backend.info())
        return 0
    if isinstance(command, Kernels):
        return _kernels(command)
    if isinstance(command, PackCommand | DataCommand):
        return data_command.run(command)
    if isinstance(command, PlanCommand):
        return plan_command.run(command)
    if isinstance(command, export.ExportCommand):
        return export.run(command)
    if isinstance(command, ImportCommand):
        return import_command.run(command)
    if isinstance(command, Verify):
        return _verify(command)
    if isinstance(command, Demo):
        _, signal = demo(demo_config(command.run, command.identities, command.passes, command.seed))
        return 0 if signal is None else 128 + signal
    outcome = train(command, objective_type)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _command_type(arguments: list[str]) -> object:
    """`Command`, with the settings of --config, or of the run that is resumed, as the defaults of `train`."""
    base = _base_config(arguments) if arguments[:1] == ["train"] else None
    if base is None:
        return Command
    train = Annotated[TrainConfig, tyro.conf.subcommand("train", default=base)]
    return train | Annotated[Info, tyro.conf.subcommand("info")]


def _base_config(arguments: list[str]) -> TrainConfig | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--run", type=Path, default=RunConfig.run)
    finder.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False)
    found, _ = finder.parse_known_args(arguments[1:])
    if found.config is not None and str(found.config) != "None":
        return TrainConfig.load(found.config)
    saved = found.run / "config.json"
    return TrainConfig.load(saved) if found.resume and saved.is_file() else None


def _kernels(command: Kernels) -> int:
    known = Kernels.architectures
    for architecture in command.architectures:
        if architecture not in known:
            raise error("kernels", "architectures", f"be among {', '.join(map(str, known))}", architecture)
    try:
        report = importlib.import_module("attfc_cuda.ops.resources.triton_report")
        report.print_table(report.rows(command.architectures))
    except ImportError as cause:
        print(f"Triton kernels left out: {cause}")
    nvcc, csrc = shutil.which("nvcc"), _build.source_root(Path(_build.__file__).parents[1])
    if nvcc is None or csrc is None:
        print(f"CUDA kernels left out: {'no nvcc on PATH' if nvcc is None else 'their sources are not installed'}")
        return 0
    cuda_report = importlib.import_module("attfc_cuda.ops.resources.cuda_report")
    print(cuda_report.format_table(cuda_report.compile_all(nvcc, csrc, list(command.architectures))))
    return 0


def _verify(command: Verify) -> int:
    if command.threads:
        torch.set_num_threads(command.threads)
    if command.backbone not in (None, judge.RAW_PIXELS):
        remedy = "the network is the one in the checkpoint"
        raise error("verify", "backbone", f"be {judge.RAW_PIXELS} or left out", repr(command.backbone), remedy)
    if command.checkpoint is None and command.backbone is None:
        raise error("verify", "checkpoint", "be given", None, f"or use --backbone {judge.RAW_PIXELS}")
    if [command.pairs, command.data, command.suite].count(None) != 2:
        got = f"pairs {command.pairs}, data {command.data}, suite {command.suite}"
        raise error("verify", "pairs", "be given, or data, or suite, and only one of them", got)

    size, backbone, method = command.image_size or 112, None, judge.RAW_PIXELS
    if command.checkpoint is not None:
        network, name = judge.load_backbone(command.checkpoint)
        size = network.image_size if command.image_size is None or command.backbone is None else command.image_size
        if command.backbone is None:
            backbone, method = network.to(pick_device(command.device)), name
    if command.suite is not None:
        return _verify_suite(command, method, backbone, size)
    if command.pairs is not None:
        sets = lists_in(command.pairs, command.root, size)
    else:
        sets = [from_dataset("held-out", build_dataset(command.data, size), command.num_pairs)]
    judgements = judge.judge(method, backbone, sets, flip=command.flip, progress=sys.stdout.isatty())
    judge.print_table(judgements, f"Verification of {command.checkpoint or method}")
    print("written:", ", ".join(map(str, judge.write_files(judgements, _out_folder(command)))))
    return 0


def _verify_suite(command: Verify, method: str, backbone: torch.nn.Module | None, size: int) -> int:
    entries = find_suite(command.suite, size, command.root)
    out, progress = _out_folder(command), sys.stdout.isatty()
    judgements, failures = judge.judge_suite(method, backbone, entries, flip=command.flip, progress=progress)
    if judgements:
        judge.print_table(judgements, f"Verification of {command.checkpoint or method} on {command.suite}")
    judge.write_suite(judgements, failures, out / "suite.json")
    print("written:", ", ".join(map(str, [out / "suite.json", *judge.write_files(judgements, out)])))
    for name, reason in failures.items():
        print(f"attfc: {name} left out: {reason}", file=sys.stderr)
    return 2 if failures else 0


def _out_folder(command: Verify) -> Path:
    if command.out is not None:
        return command.out
    if command.checkpoint is None:
        return Path("runs/verify")
    folder = command.checkpoint if command.checkpoint.is_dir() else command.checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "verify"


if __name__ == "__main__":
    sys.exit(main())

"""Where the numbers of a run go beside its log.jsonl: TensorBoard, Weights & Biases, MLflow, or a class of your own.

    class Printed(Logger):
        def numbers(self, step, values):
            print(step, values["train/loss"])

    train(config, loggers=[Printed()])

Each library is imported when a run begins, and only by the run that asks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from attfc_cuda._error import close_match, error
from attfc_cuda._files import write_text

EVENTS = "tensorboard"


class Logger:
    """Takes the numbers of a run. Every method does nothing here: override those that you need.

    The run's first process calls them, between two steps. Whatever `start` raises ends the run before its first step;
    a logger that raises later is left out from there on, with a note in the log: a server that is gone costs no run.

    Attributes:
        files: what it has made in the run's folder, once started: of the run, which may replace and delete it.
    """

    files: Sequence[Path] = ()

    def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
        """Begin.

        Args:
            run: the run's folder.
            step: steps done before; above 0 the run goes on from there, and later numbers come anew.
            settings: of the run, as its config.json has them.
        """

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by name: `train/loss`, `verify/<set>/accuracy`, ...

        Args:
            step: steps done.
            values: the numbers.
        """

    def distributions(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take the values of quantities by name, `cosines/positive`, ...: each a tensor [N] on the CPU, N above 0.

        Args:
            step: steps done.
            values: the tensors.
        """

    def end(self) -> None:
        """The run is over, or stopped."""


class TensorBoard(Logger):
    """Events in the run's folder `tensorboard`; nothing where tensorboard is not installed."""

    _writer: Any = None

    def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        folder = run / EVENTS
        before = _files_in(folder)
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self.files = [path for path in _files_in(folder) if path not in before]

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def distributions(self, step: int, values: Mapping[str, Tensor]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_histogram(name, value, step)

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases(Logger):
    """A run of wandb, whose project, entity and mode are those of its own environment (`WANDB_PROJECT`, ...).

    It has the name of the run's folder. A run that goes on adds to the same one, whose id is in `wandb.json`.
    """

    _run: Any = None

    def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
        wandb, file = _library("wandb"), run / "wandb.json"
        self._run = wandb.init(name=run.name, id=_read_id(file) if step else None, resume="allow", config=settings)
        # Its own counter never goes back, as a run that goes on from a checkpoint does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.files = _write_id(file, self._run.id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def distributions(self, step: int, values: Mapping[str, Tensor]) -> None:
        wandb = _library("wandb")
        self._run.log({"step": step, **{name: wandb.Histogram(value.numpy()) for name, value in values.items()}})

    def end(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """A run of mlflow, whose server and experiment are those of its own environment (`MLFLOW_TRACKING_URI`, ...).

    It has the name of the run's folder. A run that goes on adds to the same one, whose id is in `mlflow.json`.
    Distributions are left out: MLflow has none.
    """

    _run: Any = None

    def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
        mlflow, file = _library("mlflow"), run / "mlflow.json"
        known = _read_id(file) if step else None
        self._run = mlflow.start_run(run_id=known, run_name=None if known else run.name)
        self.files = _write_id(file, self._run.info.run_id)
        if known is None:
            flat = {f"{group}.{name}": value for group, fields in settings.items() for name, value in fields.items()}
            mlflow.log_params(flat)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        # The only characters that its names may have.
        named = {re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        _library("mlflow").log_metrics(named, step=step)

    def end(self) -> None:
        _library("mlflow").end_run()


LOGGERS: dict[str, type[Logger]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""What `--loggers` may name: each is the library that it needs, and the extra that installs it."""


def check_names(names: str) -> list[str]:
    """The loggers of a setting such as "wandb,mlflow".

    Raises:
        ValueError: For a name that is none.
        ImportError: Naming what to install.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in LOGGERS:
            raise error("train", "loggers", f"be of {', '.join(LOGGERS)}", repr(name), close_match(name, LOGGERS))
        if importlib.util.find_spec(name) is None:
            remedy = f'pip install "attfc_cuda[{name}]"'
            raise error("train", "loggers", "name installed libraries", repr(name), remedy, ImportError)
    return wanted


def start_all(loggers: Sequence[Logger], run: Path, step: int, settings: dict[str, Any]) -> None:
    """Start each of them; where one fails, those before it are ended."""
    with contextlib.ExitStack() as begun:
        for logger in loggers:
            logger.start(run, step, settings)
            begun.callback(logger.end)
        begun.pop_all()


def _library(name: str) -> ModuleType:
    return importlib.import_module(name)


def _read_id(file: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    return None


def _write_id(file: Path, number: str) -> list[Path]:
    write_text(file, json.dumps({"id": number}) + "\n")
    return [file]


def _files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []

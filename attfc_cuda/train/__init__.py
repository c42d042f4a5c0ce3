"""The trainer: a typed config, a loop on one page, checkpoints that survive anything, and a log."""

from typing import TYPE_CHECKING

from attfc_cuda._lazy import lazy_attributes

if TYPE_CHECKING:
    from attfc_cuda.train.backbone import load_backbone
    from attfc_cuda.train.callbacks import Callback
    from attfc_cuda.train.checkpoint import CheckpointError
    from attfc_cuda.train.config import TrainConfig
    from attfc_cuda.train.loggers import Logger
    from attfc_cuda.train.loop import NonFiniteLoss, Outcome, train
    from attfc_cuda.train.objective import AttFCObjective, Objective
    from attfc_cuda.train.process_group import LostProcess

__all__ = [
    "AttFCObjective",
    "Callback",
    "CheckpointError",
    "Logger",
    "LostProcess",
    "NonFiniteLoss",
    "Objective",
    "Outcome",
    "TrainConfig",
    "load_backbone",
    "train",
]

__getattr__ = lazy_attributes(
    __name__,
    __all__,
    ("config", "checkpoint", "process_group", "objective", "backbone", "callbacks", "loggers", "loop", "training"),
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

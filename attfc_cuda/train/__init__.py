"""The trainer: a typed config, a loop on one page, checkpoints that survive anything, and a log."""

from attfc_cuda.train.checkpoint import CheckpointError
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.loop import NonFiniteLoss, Outcome, train
from attfc_cuda.train.objective import AttFCObjective, Objective
from attfc_cuda.train.process_group import LostProcess

__all__ = [
    "AttFCObjective",
    "CheckpointError",
    "LostProcess",
    "NonFiniteLoss",
    "Objective",
    "Outcome",
    "TrainConfig",
    "train",
]

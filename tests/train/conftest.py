"""Shared by the trainer's tests: a run of a few seconds on drawn faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attfc_cuda.train import TrainConfig


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Builds a config of 20 steps over epochs of 8; keyword arguments override any field by its name."""

    def build(run: str = "run", **overrides: object) -> TrainConfig:
        config = TrainConfig()
        settings: dict[str, object] = {
            "data": "procedural:16x4", "image_size": 16, "batch_size": 8, "gallery_size": 2, "embedding_dim": 16,
            "steps": 20, "run": tmp_path / run, "log_every": 1, "device": "cpu", "threads": 1, "tensorboard": False,
            "progress": False, "pictures": False, "verify_every": 0, "verify_num_pairs": 20, **overrides,
        }  # fmt: skip
        for name, value in settings.items():
            groups = (config.dataset, config.model, config.head, config.optim, config.verify, config.run)
            group = next(group for group in groups if hasattr(group, name))
            setattr(group, name, value)
        return config

    return build

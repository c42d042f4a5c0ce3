"""The trained network of a checkpoint: its names, its numbers, and sizes that a stranger has written beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attfc_cuda import backbones
from attfc_cuda.train import TrainConfig, checkpoint, load_backbone


@pytest.fixture
def state() -> dict[str, Any]:
    config = TrainConfig()
    config.model.embedding_dim, config.dataset.image_size = 8, 16
    network = backbones.build("small", 8, 16)
    return {"config": config.to_dict(), "backbone": network.state_dict()}


def saved(state: dict[str, Any], folder: Path) -> Path:
    return checkpoint.save(state, folder / "checkpoints", step=1, keep=1)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_wrappers_are_dropped(state: dict[str, Any], prefix: str, tmp_path: Path) -> None:
    whole = state["backbone"]
    saved({**state, "backbone": {prefix + name: value for name, value in whole.items()}}, tmp_path)
    network, name = load_backbone(tmp_path)
    found = network.state_dict()
    assert name == "small" and not network.training and found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(state: dict[str, Any], number: float, tmp_path: Path) -> None:
    name = next(name for name, value in state["backbone"].items() if value.is_floating_point())
    state["backbone"][name][..., -1] = number
    saved(state, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=rf"{tmp_path} must .*NaN or infinite numbers in {name}"):
        load_backbone(tmp_path)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "huge embedding": (lambda s: s["config"]["model"].update(embedding_dim=2**34), "of shape"),
    "huge image": (lambda s: s["config"]["dataset"].update(image_size=2**18), "of shape"),
    "no config": (lambda s: s.pop("config"), "config"),
    "no network": (lambda s: s.pop("backbone"), "backbone"),
    "a list": (lambda s: s.update(backbone=[torch.zeros(1)]), "list in place of a state_dict"),
    "steering": (lambda s: s["config"]["model"].update(backbone="\x1b[2J"), r"\\x1b\[2J"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_whatever_is_wrong_is_one_error_that_names_the_run(state: dict[str, Any], name: str, tmp_path: Path) -> None:
    change, words = CHANGES[name]
    change(state)
    saved(state, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=rf"^checkpoint: {tmp_path} must .*{words}") as refused:
        load_backbone(tmp_path)
    assert "\x1b" not in str(refused.value)

"""InsightFace's checkpoints read: names and shapes recognised, ranks put in order, strangers' files refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attfc_cuda import FullyConnected, PartialFC, backbones
from attfc_cuda.compat.insightface import PartialFC_V2, as_margin, load_backbone, load_centers
from attfc_cuda.margins import CosFace


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state_dict as InsightFace's iresnet18 writes it: the names are spelled out here, not taken from ours."""
    generator = torch.Generator().manual_seed(0)

    def norm(name: str, channels: int) -> dict[str, torch.Tensor]:
        values = {key: torch.rand(channels, generator=generator) for key in ("weight", "bias", "running_mean")}
        values |= {"running_var": 1 + torch.rand(channels, generator=generator), "num_batches_tracked": torch.tensor(7)}
        return {f"{name}.{key}": value for key, value in values.items()}

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    state = {"conv1.weight": draw(64, 3, 3, 3), **norm("bn1", 64), "prelu.weight": torch.full((64,), 0.2)}
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name, ingoing = f"layer{stage}.{block}", before if block == 0 else channels
            state |= norm(f"{name}.bn1", ingoing)
            state[f"{name}.conv1.weight"] = draw(channels, ingoing, 3, 3)
            state |= norm(f"{name}.bn2", channels)
            state[f"{name}.prelu.weight"] = torch.full((channels,), 0.25)
            state[f"{name}.conv2.weight"] = draw(channels, channels, 3, 3)
            state |= norm(f"{name}.bn3", channels)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = draw(channels, ingoing, 1, 1)
                state |= norm(f"{name}.downsample.1", channels)
        before = channels
    state |= norm("bn2", 512)
    state |= {"fc.weight": draw(32, 512 * 4), "fc.bias": draw(32)}  # side 2: images of 32 pixels
    return state | norm("features", 32)


def test_a_backbone_is_recognised_by_its_shapes(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "model.pt")
    backbone = load_backbone(tmp_path / "model.pt")
    assert (backbone.embedding_dim, backbone.image_size, backbone.training) == (32, 32, False)
    images = torch.randn(2, 3, 32, 32)
    expected = backbones.build("iresnet18", 32, 32).eval()
    expected.load_state_dict(published)
    assert torch.equal(backbone(images), expected(images)) and backbone(images).std() > 0
    assert not backbone.features.weight.requires_grad


@pytest.mark.parametrize("layout", ["ddp", "all states", "file of before torch 1.6"])
def test_its_other_layouts_hold_the_same(published: dict[str, torch.Tensor], tmp_path: Path, layout: str) -> None:
    state: Any = published
    if layout == "ddp":
        state = {f"module.{name}": value for name, value in published.items()}
    if layout == "all states":
        state = {"epoch": 3, "state_dict_backbone": published, "state_dict_softmax_fc": {"weight": torch.zeros(2, 32)}}
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=layout != "file of before torch 1.6")
    loaded = load_backbone(tmp_path / "model.pt").state_dict()
    assert loaded.keys() == published.keys()
    assert all(torch.equal(loaded[name], value) for name, value in published.items())


def test_other_networks_and_broken_files_are_named(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(ValueError, match="load_backbone: path must exist, got no file"):
        load_backbone(path)
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"hold an IResNet of depth .*got stages of \(0, 0, 0, 0\) blocks in .*model.pt"
    ):
        load_backbone(path)
    torch.save({name: value for name, value in published.items() if name != "bn2.running_var"}, path)
    with pytest.raises(ValueError, match="an IResNet of depth 18, got .*model.pt .*bn2.running_var"):
        load_backbone(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="hold a state_dict of tensors, got list in"):
        load_backbone(path)
    whole = path.read_bytes()
    torch.save(published, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="be a checkpoint of tensors, got .*model.pt, which does not load"):
        load_backbone(path)
    path.write_bytes(whole[:20])
    with pytest.raises(ValueError, match="which does not load"):
        load_backbone(path)


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "softmax_fc_gpu_0.pt"):
        torch.save({"weight": Evil()}, name)
    with pytest.raises(ValueError, match="load_backbone: path must be a checkpoint of tensors"):
        load_backbone("model.pt")
    with pytest.raises(ValueError, match="load_centers: path must be a checkpoint of tensors"):
        load_centers(FullyConnected(4, 3), "softmax_fc_gpu_0.pt")
    assert not Path("ran").exists()


def save_ranks(folder: Path, centers: torch.Tensor, ranks: int, layout: str = "softmax_fc_gpu") -> list[Path]:
    """As InsightFace cuts: the first N % ranks processes hold one class more."""
    total, paths, first = len(centers), [], 0
    for rank in range(ranks):
        count = total // ranks + (rank < total % ranks)
        part = centers[first : first + count].clone()
        first += count
        states = {
            "softmax_fc_gpu": (f"softmax_fc_gpu_{rank}.pt", {"weight": part}),
            "checkpoint_gpu": (f"checkpoint_gpu_{rank}.pt", {"state_dict_softmax_fc": {"weight": part}, "epoch": 1}),
            "rank": (f"rank_{rank}_softmax_weight.pt", part),
        }
        name, state = states[layout]
        torch.save(state, folder / name)
        paths.append(folder / name)
    return paths


@pytest.mark.parametrize("layout", ["softmax_fc_gpu", "checkpoint_gpu", "rank"])
def test_centres_of_all_ranks_come_in_order(tmp_path: Path, layout: str) -> None:
    centers = torch.randn(25, 4)
    paths = save_ranks(tmp_path, centers, ranks=11, layout=layout)  # rank 10 sorts before rank 2 as text
    for head in (FullyConnected(4, 25), PartialFC(4, 25), PartialFC_V2(as_margin(CosFace()), 4, 25)):
        load_centers(head, tmp_path)
        assert torch.equal(head.centers, centers) and head.centers.requires_grad
        head.centers.data.zero_()
        load_centers(head, paths[::-1])
        assert torch.equal(head.centers, centers)


def test_each_process_takes_its_own_part(tmp_path: Path) -> None:
    """By the head's own bounds, wherever InsightFace cut."""
    centers = torch.randn(25, 4)
    save_ranks(tmp_path, centers, ranks=3)
    for first, last in ((0, 10), (10, 20), (20, 25), (7, 18), (25, 25)):
        head = FullyConnected(4, 25)
        head.first, head.last, head.centers = first, last, nn.Parameter(torch.zeros(last - first, 4))
        load_centers(head, tmp_path)
        assert torch.equal(head.centers, centers[first:last])


def test_centres_that_do_not_fit_are_refused_and_nothing_moves(tmp_path: Path) -> None:
    paths = save_ranks(tmp_path, torch.randn(25, 4), ranks=3)
    head = FullyConnected(4, 25)
    before = head.centers.detach().clone()
    with pytest.raises(ValueError, match=r"hold the head's 30 centres of 4 numbers, got 25 of 4 numbers in 3 files"):
        load_centers(FullyConnected(4, 30), tmp_path)
    with pytest.raises(ValueError, match=r"25 centres of 5 numbers, got 25 of 4"):
        load_centers(FullyConnected(5, 25), tmp_path)
    with pytest.raises(ValueError, match=r"have ranks 0 to 1, got \[0, 2\]"):
        load_centers(head, [paths[0], paths[2]])
    with pytest.raises(ValueError, match=r"have ranks 0 to 1, got \[1, 1\]"):
        load_centers(head, [paths[1], paths[1]])
    with pytest.raises(ValueError, match="name or hold softmax_fc_gpu"):
        load_centers(head, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="name or hold softmax_fc_gpu"):
        load_centers(head, tmp_path / "empty")
    torch.save({"weight": torch.zeros(3, dtype=torch.int64)}, paths[2])
    with pytest.raises(ValueError, match='hold a floating "weight" .* got .*softmax_fc_gpu_2.pt'):
        load_centers(head, tmp_path)
    assert torch.equal(head.centers, before)

"""How the trainer joins a group, cuts batches and state, without starting processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attfc_cuda import FullyConnected
from attfc_cuda.data import AttentionLoader, FaceDataset
from attfc_cuda.distributed import split_state
from attfc_cuda.train import TrainConfig
from attfc_cuda.train.log import NoLog
from attfc_cuda.train.objective import OBJECTIVES
from attfc_cuda.train.process_group import Group, LostProcess, join, shared_settings
from attfc_cuda.train.training import build_loader, load_dataset, refuse_loose_parameters


def group(rank: int = 1, count: int = 2) -> Group:
    made = object.__new__(Group)
    made.device, made.rank, made.count, made.owned = torch.device("cpu"), rank, count, True
    return made


def test_the_trainer_and_a_users_own_processes_get_the_same_images() -> None:
    config = TrainConfig()
    config.dataset.data, config.dataset.image_size, config.dataset.batch_size = "procedural:9x5", 16, 7
    dataset = load_dataset(config)
    for rank in range(2):
        trainer = build_loader(config, dataset, OBJECTIVES[config.head.head], group(rank, 2))
        user = AttentionLoader(
            dataset, 7, trainer.sampler.gallery_size, seed=config.run.seed, augment=config.dataset.augment, rank=rank,
            world_size=2,
        )  # fmt: skip
        for theirs, ours in zip(trainer, user, strict=True):
            assert all(map(torch.equal, theirs, ours)) and len(ours.labels) == 3 + rank


@pytest.mark.parametrize(
    ("batch_size", "negatives", "equal"), [(8, 2, True), (7, 2, False), (8, 1, False), (8, "auto", False)]
)
def test_heads_are_told_whether_the_parts_are_equal(
    batch_size: int, negatives: int | str, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attfc_cuda.train.process_group.Shards", SimpleNamespace)
    loader = AttentionLoader(
        FaceDataset(np.r_[np.repeat(np.arange(9), 5), 9, 10], [f"{k}" for k in range(11)], 16),
        batch_size, negatives_per_batch=negatives, world_size=2,
    )  # fmt: skip
    assert group().shards(loader).equal_batches is equal


def test_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig()
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(config) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(config) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    config.run.device = "cuda:1"
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda with several processes, got 'cuda:1'"):
        join(config)
    config.run.device = "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="a GPU for every process of this machine, got local rank 1 with 1 GPUs"):
        join(config)


LOST = [
    RuntimeError("[/src/gloo/pair.cc:545] Read error [10.0.0.1]:14: Connection reset by peer. This is typically"),
    RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    torch.distributed.DistBackendError("communicator was aborted"),
]


@pytest.mark.parametrize("cause", LOST, ids=["reset", "timeout", "backend"])
def test_a_lost_process_is_told_in_one_sentence(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(LostProcess) as caught, group(rank=3, count=8).naming_lost_processes(Path("runs/large")):
        raise cause
    reason = str(cause).removeprefix("[/src/gloo/pair.cc:545] ").split(". ")[0]
    assert str(caught.value) == (
        f"train: all 8 processes must go on, got no answer from another one at rank 3 ({reason}); the run ends here "
        "and goes on from its last checkpoint, with as many processes as there are: "
        "torchrun --nproc-per-node 4 -m -- attfc_cuda.cli train --run runs/large --resume"
    )


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^shape mismatch$"), group().naming_lost_processes(Path("run")):
        raise RuntimeError("shape mismatch")


def test_silence_takes_everything() -> None:
    with NoLog() as log:
        log.step(3, {"loss": 1.0})
        log.show("nothing")


class Half:
    """Shards of the second of two processes, without a group."""

    rank, count, equal_batches, gradient_factor = 1, 2, True, 2.0

    def bounds(self, total: int, rank: int = 1) -> tuple[int, int]:
        size = -(-total // 2)
        return min(rank * size, total), min((rank + 1) * size, total)


@pytest.mark.parametrize("optimizer_of", [
    lambda head: torch.optim.AdamW([*head.net.parameters(), *head.head.parameters()], lr=0.1),
    lambda head: head.head.fuse_optimizer(0.1),
], ids=["adamw", "fused"])  # fmt: skip
def test_state_of_one_process_is_cut_and_state_of_many_left_out(optimizer_of: Callable) -> None:
    torch.manual_seed(0)
    one, half = (
        nn.ModuleDict({"net": nn.Linear(4, 4), "head": FullyConnected(4, 5, shards=shards, backend="eager")})
        for shards in (None, Half())
    )
    optimizers = [optimizer_of(module) for module in (one, half)]
    one.head(one.net(torch.randn(3, 4)), torch.arange(3)).backward()
    optimizers[0].step()
    state, moved = one.state_dict(), optimizers[0].state_dict()

    half.load_state_dict(split_state.with_parts(state, half))
    optimizers[1].load_state_dict(split_state.optimizer_with_parts(moved, optimizers[1], half))
    assert torch.equal(half.head.centers, one.head.centers[3:])
    own, whole = (o.state[m.head.centers] for o, m in zip(optimizers[::-1], (half, one), strict=True))
    assert own.keys() == whole.keys() and len(own) >= 1
    for name, value in own.items():
        assert torch.equal(value, whole[name][3:] if whole[name].ndim else whole[name]), name
    assert torch.equal(half.net.weight, one.net.weight)

    kept = split_state.without_parts(half.state_dict(), half)
    assert state.keys() - kept.keys() == {"head.centers"}
    left = split_state.optimizer_without_parts(optimizers[1].state_dict(), optimizers[1], half)
    tensors = [v for s in left["state"].values() for v in s.values()]
    assert all(v.shape != (2, 4) for v in tensors)
    assert split_state.holder((None, optimizers[1]), half) is optimizers[1]
    assert split_state.holder((torch.optim.SGD(half.net.parameters(), lr=1), None), half) is None
    # What is left out keeps the module's own value.
    before = half.head.centers.clone()
    half.load_state_dict(split_state.with_parts(kept, half))
    assert torch.equal(half.head.centers, before)


def test_parameters_that_would_drift_apart_are_refused() -> None:
    objective = nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="no trained parameters but split class centres, .*, got head.weight"):
        refuse_loose_parameters(SimpleNamespace(named_parameters=objective.named_parameters), set())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_with_other_settings_is_refused_by_name_on_every_one(rank: int) -> None:
    config, other = TrainConfig(), TrainConfig()
    other.head.scale, other.run.threads, other.dataset.workers = 64.0, 3, 2  # the last two are each process's own
    made = group(rank, 3)
    made.from_all = lambda value: [shared_settings(config), shared_settings(config), shared_settings(other)]
    words = "the settings must be the same on all 3 processes, got scale 24.0 at rank 0 and 64.0 at rank 2"
    with pytest.raises(ValueError, match=words):
        made.require_alike("the settings", shared_settings(config))
    other.head.scale = config.head.scale
    made.require_alike("the settings", shared_settings(config))

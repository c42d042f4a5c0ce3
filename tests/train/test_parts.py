"""A batch in parts is the batch in one: the same step for every head, with the activations of one part at a time."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attfc_cuda import AdaSin, ArcFace, AttFC, CurricularFace, FullyConnected, PartialFC
from attfc_cuda.train import TrainConfig, parts, train
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import OBJECTIVES

Tiny = Callable[..., TrainConfig]
ROWS, DIM, CLASSES, STEPS = 11, 8, 13, 4


class Loop:
    """Steps of a network and a head in float64, the network in `count` parts."""

    def __init__(self, head: nn.Module, count: int, fused: bool) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, DIM)).double()
        self.head = copy.deepcopy(head)
        self.count = count
        modules = [self.network] if fused else [self.network, self.head]
        self.optimizer = torch.optim.SGD([p for m in modules for p in m.parameters()], 0.3, momentum=0.9)
        if fused:
            self.head.fuse_optimizer(0.3)

    def step(self, images: Tensor, labels: Tensor) -> float:
        embeddings = parts.InParts(self.network, self.count)(images)
        more = (embeddings.detach().roll(1, 0),) if isinstance(self.head, AttFC) else ()
        loss = self.head(embeddings, labels, *more)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


HEADS = {
    "AttFC": lambda: AttFC(DIM, 40, AdaSin(m=0.2, scale=16), num_classes=CLASSES, dtype=torch.float64),
    "full FC": lambda: FullyConnected(DIM, CLASSES, CurricularFace(scale=16), dtype=torch.float64),
    "full FC, fused": lambda: FullyConnected(DIM, CLASSES, CurricularFace(scale=16), dtype=torch.float64),
    "Partial FC, fused": lambda: PartialFC(DIM, CLASSES, 1.0, ArcFace(scale=16), dtype=torch.float64),
}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", HEADS)
def test_a_step_in_parts_is_the_step_of_the_batch(name: str, count: int) -> None:
    torch.manual_seed(1)
    head = HEADS[name]()
    whole, divided = (Loop(head, number, "fused" in name) for number in (1, count))
    for _ in range(STEPS):
        images, labels = torch.randn(ROWS, 6, dtype=torch.float64), torch.randint(CLASSES, (ROWS,))
        # A step's rounding is some hundred units of the last place; each later one multiplies it by less than ten.
        assert divided.step(images, labels) == pytest.approx(whole.step(images, labels), rel=1e-10)
    for part, other in ((divided.network, whole.network), (divided.head, whole.head)):
        for (key, value), expected in zip(part.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(
                value, expected, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_part_that_runs_again_does_what_it_did() -> None:
    """Dropout's masks are those of the first time, and BatchNorm's statistics move once."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 8), nn.BatchNorm1d(8))
    twin, images = copy.deepcopy(network), torch.randn(10, 6)
    torch.manual_seed(1)
    given = parts.through(network, images, 4)
    given.square().sum().sin().backward()
    torch.manual_seed(1)
    expected = torch.cat([twin(part) for part in images.tensor_split(4)])
    expected.square().sum().sin().backward()
    assert torch.equal(given, expected)
    assert twin[1].num_batches_tracked == 4
    for (key, value), other in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    for value, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad)


class Watched(nn.Module):
    """Its activations, as long as somebody keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(5)), []

    def forward(self, images: Tensor) -> Tensor:
        activation = images * self.weight
        self.seen.append(weakref.ref(activation))
        return activation.square()

    @property
    def kept(self) -> int:
        return sum(reference() is not None for reference in self.seen)


@pytest.mark.parametrize("count, rows, passes, kept", [(1, 9, 1, 1), (4, 9, 7, 1), (4, 5, 3, 1), (4, 3, 1, 1)])
def test_the_activations_of_one_part_are_kept(count: int, rows: int, passes: int, kept: int) -> None:
    network = Watched()
    embeddings = parts.InParts(network, count)(torch.randn(rows, 5))
    assert network.kept == kept
    most = []
    embeddings.register_hook(lambda gradient: most.append(network.kept))
    embeddings.sum().backward()
    assert len(network.seen) == passes and most == [kept] and network.kept == 0


def test_without_gradient_nothing_runs_twice() -> None:
    network = Watched()
    with torch.no_grad():
        found = parts.through(network, images := torch.randn(9, 5), 4)
    assert torch.equal(found, images.square()) and len(network.seen) == 4


@pytest.mark.parametrize("head", ["attfc", "fc"])
def test_a_run_in_parts_is_the_run(tiny_config: Tiny, head: str) -> None:
    """With a network whose rows know nothing of each other, up to the rounding of float32 over ten steps."""
    common = {"head": head, "backbone_options": "norm=group", "steps": 10, "warmup": 0.0}
    losses = []
    for accumulate in (1, 3):
        config = tiny_config(f"parts{accumulate}", accumulate=accumulate, **common)
        train(config, OBJECTIVES[head])
        records = read_log(config.run.run / "log.jsonl")
        losses.append([(r["loss"], r["grad_norm"]) for r in records if r["kind"] == "step"])
    assert len(losses[0]) == 10
    assert losses[1] != losses[0], "the second run has not been in parts"
    for found, expected in zip(losses[1], losses[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)

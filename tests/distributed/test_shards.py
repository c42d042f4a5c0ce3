"""What crosses between processes: samples, gradients that DistributedDataParallel averages, merged statistics."""

from __future__ import annotations

import re

import pytest
import torch
from group import run
from group_cases import REFERENCE, STATISTICS, backbone, group_facts, head_of, rows, two_steps

from attfc_cuda import AttFC, FullyConnected, functional
from attfc_cuda.distributed.shards import Shards, take_rows
from attfc_cuda.margins import AdaSin

TIGHT = {"rtol": 1e-13, "atol": 1e-13}


@pytest.fixture(scope="module")
def facts() -> list[dict]:
    """[rank] of two processes."""
    return run(2, group_facts)


def test_a_sample_below_one_is_the_loss_over_the_union_of_the_samples(facts: list[dict]) -> None:
    ranks = [found["sampled"] for found in facts]
    centers = torch.cat([found["centers"] for found in ranks]).requires_grad_()
    classes = torch.cat([found["classes"] for found in ranks])
    embeddings, labels = (torch.cat(values) for values in zip(rows(0), rows(1), strict=True))
    embeddings.requires_grad_()
    assert len(set(classes.tolist())) == len(classes) == 28 == ranks[0]["fill"]
    assert set(labels.tolist()) < set(classes.tolist())
    unit = torch.nn.functional.normalize(embeddings)
    chosen = centers[classes]
    loss = functional.margin_softmax_loss(
        unit, chosen, labels, classes, AdaSin(), target_slot=torch.searchsorted(classes, labels),
        center_scale=functional.inverse_norms(chosen), backend="eager",
    ).loss  # fmt: skip
    loss.backward()
    for found in ranks:
        torch.testing.assert_close(found["loss"], loss.detach(), **TIGHT)
    for key, gradient in (("gradient", embeddings.grad), ("center_gradient", centers.grad)):
        torch.testing.assert_close(torch.cat([found[key] for found in ranks]), gradient, **TIGHT)


@pytest.mark.parametrize("equal", [False, True], ids=["sizes exchanged", "equal batches promised"])
@pytest.mark.parametrize("kind", [FullyConnected, AttFC])
def test_a_backbone_in_ddp_learns_as_on_one_process(kind: type, equal: bool, facts: list[dict]) -> None:
    expected = two_steps(backbone(), head_of(kind, None), 0, None)
    for found in facts:
        torch.testing.assert_close(found[f"wrapped {equal}"][kind.__name__], expected, **TIGHT)


def test_equal_batches_save_the_exchange_of_sizes(facts: list[dict]) -> None:
    # Two heads, two steps.
    assert facts[0]["gathers False"] - facts[0]["gathers True"] == 4


def test_merged_statistics(facts: list[dict]) -> None:
    lse, hard, largest, omitted = STATISTICS.unbind(dim=1)
    total = torch.logsumexp(lse, dim=0)
    for rank, found in enumerate(facts):
        merged = found["merged"]
        torch.testing.assert_close(merged[0], total, **TIGHT)
        assert merged[1].tolist() == [16777219, 1, 3, 0] and torch.equal(merged[2], largest.amax(dim=0))
        # Mass left out, of that of all negatives and the target.
        mass = (omitted * (lse.exp() + REFERENCE.exp())).sum(dim=0)
        torch.testing.assert_close(merged[3], mass / (total.exp() + REFERENCE.exp()), **TIGHT)
        share = torch.where(total.isinf(), 0, (lse[rank] - total).exp())
        torch.testing.assert_close(merged[4], share, **TIGHT)


def test_a_process_outside_of_the_group_is_told(facts: list[dict]) -> None:
    rule = "Shards: group must contain this process, got one without it"
    assert [found["outsider"] for found in facts] == [rule, None]


def test_what_the_processes_of_a_run_agree_on(facts: list[dict]) -> None:
    for found in (rank["group"] for rank in facts):
        assert [buffer.tolist() for buffer in found["buffers"]] == [[1.0, 1.0], 5.0]
        assert found["sum"].tolist() == [3.0] and found["all"] == [0, 1]
        assert found["signals"] == [15, 2, 0]
    assert all(rank["copied"] for rank in facts)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 4, 7, 15])
def test_bounds_are_those_of_torch_chunk(total: int, count: int) -> None:
    shards = object.__new__(Shards)
    shards.count = count
    bounds = [shards.bounds(total, rank) for rank in range(count)]
    chunks = torch.arange(total).chunk(count)
    expected = [(int(c[0]), int(c[-1]) + 1) for c in chunks] + [(total, total)] * (count - len(chunks))
    assert bounds == expected


def test_rows_taken_on_one_process() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    taken = take_rows(values, torch.tensor([2, -1, 0, 2]), 3, None)
    assert taken.tolist() == [[4, 5], [0, 0], [0, 1], [4, 5]]


def test_shards_need_a_group() -> None:
    with pytest.raises(ValueError, match=re.escape("Default process group has not been initialized")):
        Shards()

"""One process and several agree: loss, gradients, state, for every head."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from group import run
from sharded_cases import BACKENDS, CASES, STEPS, every_case, train
from torch import Tensor

pytestmark = pytest.mark.xdist_group("sharded heads")  # one group of processes for all

# Of the largest number, if that is above 1. Three steps in float64 leave room for what they amplify.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-13}
# Split over the processes: their rows, or their part of the classes. All else is the same on every one.
SPLIT = ("gradient", "centers", "center_gradient", "optimizer.momentum_buffer", "optimizer.exp_avg",
         "optimizer.exp_avg_sq")  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2, pytest.param(3, marks=pytest.mark.proof)])
def sharded(request: pytest.FixtureRequest) -> list[dict[tuple, dict]]:
    """[rank]: every case's results on a group of 1, 2 and 3 processes."""
    return run(request.param, every_case, request.param != 2)


@functools.cache
def on_one_process(name: str, dtype: torch.dtype, backend: str) -> dict[str, list[Tensor]]:
    return train(CASES[name], dtype, backend)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    error = (actual - expected).abs().max() if expected.numel() else torch.zeros(())
    return bool(error <= tolerance * max(1.0, float(expected.abs().max()) if expected.numel() else 1.0))


@pytest.mark.parametrize("name", CASES)
def test_processes_agree_with_one(name: str, sharded: list) -> None:
    for dtype, backend in itertools.product(TOLERANCES, BACKENDS):
        check_agreement(name, dtype, backend, sharded)


def check_agreement(name: str, dtype: torch.dtype, backend: str, sharded: list) -> None:
    expected = on_one_process(name, dtype, backend)
    ranks = [found[name, dtype, backend] for found in sharded]
    assert all(found.keys() == expected.keys() for found in ranks)
    for key, values in expected.items():
        for step, value in enumerate(values):
            parts = [found[key][step] for found in ranks]
            if key in SPLIT:
                assert close(torch.cat(parts), value, TOLERANCES[dtype]), (dtype, backend, key, step)
            else:
                assert all(close(part, value, TOLERANCES[dtype]) for part in parts), (dtype, backend, key, step)
                assert all(torch.equal(part, parts[0]) for part in parts), (dtype, backend, key, step)
    assert len(expected["loss"]) == STEPS[dtype]


@pytest.mark.parametrize("name", ["fc adasin", "fc adasin, phi differentiated", "fc curricularface", "attfc adasin"])
def test_the_cases_have_hard_negatives_in_some_rows(name: str) -> None:
    fractions = train(CASES[name], torch.float64, "eager")["stats.hard_fraction"]
    assert all(0.2 < fraction < 0.8 for fraction in fractions)

"""The optimizer in the backward pass: the same steps as torch.optim's, and nothing left behind."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from trained_cases import batch, make

from attfc_cuda import ArcFace, FullyConnected, PartialFC
from attfc_cuda.heads.fused_optimizer import all_finite
from attfc_cuda.ops import trained_centers as _trained_centers

OPTIMIZERS = {
    "sgd": ({"momentum": 0.9, "weight_decay": 1e-2}, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-2}),
    "plain sgd": ({"momentum": 0.0}, torch.optim.SGD, {}),
    "adamw": (
        {"kind": "adamw", "weight_decay": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6},
        torch.optim.AdamW,
        {"weight_decay": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
}


@pytest.fixture(params=[1 << 21, 7 * 16], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_trained_centers.BLOCK_NUMBERS, "cpu", request.param)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_full_fc_steps_as_torch_optim_does(name: str, backend: str, blocks: None) -> None:
    fused_options, usual_type, usual_options = OPTIMIZERS[name]
    usual, fused = make(FullyConnected, backend=backend), make(FullyConnected, backend=backend)
    optimizer = usual_type([usual.centers], lr=0.1, **usual_options)
    inside = fused.fuse_optimizer(0.1, **fused_options)
    for step in range(4):
        for group in (*optimizer.param_groups, *inside.param_groups):
            group["lr"] = 0.1 / (step + 1)
        x, labels = batch(seed=step)
        optimizer.zero_grad()
        usual(x, labels).backward()
        optimizer.step()
        fused(x, labels).backward()
        inside.step()
        assert fused.centers.grad is None
    torch.testing.assert_close(fused.centers, usual.centers, rtol=1e-4, atol=1e-5)
    assert not torch.equal(fused.centers, make(FullyConnected).centers)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_partial_fc_steps_the_sample_and_nothing_else(name: str, blocks: None) -> None:
    fused_options, usual_type, usual_options = OPTIMIZERS[name]
    head = make(PartialFC, sample_rate=0.3)
    inside = head.fuse_optimizer(0.1, **fused_options)
    x, labels = batch(rows=6)
    state = torch.get_rng_state()
    sample = head.select(labels).center_labels
    torch.set_rng_state(state)
    before = head.centers.detach().clone()
    # The same step by hand: an optimizer over the sampled rows alone.
    plain = make(PartialFC, sample_rate=0.3)
    torch.set_rng_state(state)
    plain(x, labels).backward()
    rows = before[sample].clone().requires_grad_()
    rows.grad = plain.centers.grad[sample]
    usual_type([rows], lr=0.1, **usual_options).step()
    torch.set_rng_state(state)
    head(x, labels).backward()
    torch.testing.assert_close(head.centers[sample], rows, rtol=1e-5, atol=1e-6)
    outside = torch.ones(40, dtype=torch.bool)
    outside[sample] = False
    assert torch.equal(head.centers[outside], before[outside])
    for key, buffer in inside.state[head.centers].items():
        if key != "step":
            assert buffer[sample].any() and not buffer[outside].any()


def test_a_frozen_backbone_still_trains_the_centers() -> None:
    for head in (make(FullyConnected), make(PartialFC, sample_rate=0.5)):
        head.fuse_optimizer(0.1)
        before = head.centers.detach().clone()
        head(*batch()).backward()
        assert not torch.equal(head.centers, before)


def test_state_dict_round_trip_continues_bit_by_bit() -> None:
    one = make(FullyConnected)
    first = one.fuse_optimizer(0.1, momentum=0.9)
    one(*batch(seed=0)).backward()
    other = make(FullyConnected)
    second = other.fuse_optimizer(0.5, momentum=0.9)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # which would else share its tensors
    for head in (one, other):
        head(*batch(seed=1)).backward()
    assert torch.equal(one.centers, other.centers) and second.param_groups[0]["lr"] == 0.1


def test_schedules_drive_it() -> None:
    head = make(FullyConnected)
    optimizer = head.fuse_optimizer(0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    head(*batch()).backward()
    optimizer.step()
    schedule.step()
    before = head.centers.detach().clone()
    head(*batch()).backward()
    assert optimizer.param_groups[0]["lr"] == 0 and torch.equal(head.centers, before)


def test_scaled_losses_give_the_same_step_and_overflow_none() -> None:
    plain, scaled = make(FullyConnected), make(FullyConnected)
    plain.fuse_optimizer(0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled.fuse_optimizer(0.1, grad_scaler=scaler)
    x, labels = batch()
    plain(x, labels).backward()
    scaler.scale(scaled(x, labels)).backward()
    torch.testing.assert_close(scaled.centers, plain.centers, rtol=1e-5, atol=1e-6)
    before = scaled.centers.detach().clone()
    (scaled(x, labels) * torch.tensor(float("inf"))).backward()
    assert torch.equal(scaled.centers, before)


def test_two_forwards_before_a_backward_are_refused() -> None:
    """The second backward would meet centres that the first has moved."""
    head = make(FullyConnected)
    head.fuse_optimizer(0.1)
    x, labels = batch()
    first, second = head(x, labels), head(x, labels)
    first.backward()
    with pytest.raises(
        RuntimeError,
        match="next step, got that of an earlier forward",
    ):
        second.backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_copy_of_the_head_has_its_own(copied: Callable) -> None:
    head = make(FullyConnected)
    head.fuse_optimizer(0.1, kind="adamw")
    head(*batch()).backward()
    twin = copied(head)
    for one in (head, twin):
        one(*batch(seed=2)).backward()
    assert torch.equal(head.centers, twin.centers) and head.centers is not twin.centers
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    head.fuse_optimizer(0.1, grad_scaler=scaler)
    assert copy.deepcopy(head)._fused.grad_scaler is scaler


def test_other_centers_than_its_own_are_refused() -> None:
    head = make(FullyConnected)
    head.fuse_optimizer(0.1)
    head.load_state_dict({name: value.clone() for name, value in head.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match="centers must be the parameter that fuse_optimizer was called with, got ano"):
        head(*batch())
    head.fuse_optimizer(0.1)
    before = head.centers.detach().clone()
    head(*batch()).backward()
    assert not torch.equal(head.centers, before)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_state_of_the_other_kind_is_refused(kind: str) -> None:
    one, other = make(FullyConnected), make(FullyConnected)
    saved = one.fuse_optimizer(0.1, kind=kind)
    one(*batch()).backward()
    with pytest.raises(ValueError, match="state_dict must be of kind '(sgd|adamw)' .*, got (exp_avg|momentum_buffer)"):
        other.fuse_optimizer(0.1, kind={"sgd": "adamw", "adamw": "sgd"}[kind]).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_head_may_be_cast_before_the_first_step(kind: str, dtype: torch.dtype) -> None:
    head = make(FullyConnected)
    optimizer = head.fuse_optimizer(0.1, kind=kind)
    before = head.to(dtype).centers.detach().clone()
    head(*batch()).backward()
    assert not torch.equal(head.centers, before)
    assert all(v.dtype == dtype for name, v in optimizer.state[head.centers].items() if name != "step")


def test_a_step_that_overflowed_is_not_counted(blocks: None) -> None:
    head = make(FullyConnected)
    optimizer = head.fuse_optimizer(0.1, kind="adamw")
    for factor, steps in ((float("inf"), 0), (1.0, 1), (float("inf"), 1), (1.0, 2)):
        (head(*batch()) * factor).backward()
        assert optimizer.state[head.centers]["step"] == steps and head.centers.isfinite().all()


def test_the_count_of_steps_lies_beside_the_centers() -> None:
    head = make(FullyConnected).to("meta")
    optimizer = head.fuse_optimizer(0.1, kind="adamw")
    saved = optimizer.state_dict()
    saved["state"] = {0: {"step": torch.tensor(3.0)}}
    optimizer.load_state_dict(saved)
    assert optimizer.state[head.centers]["step"].device.type == "meta"


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("kind", [FullyConnected, PartialFC])
def test_frozen_centers_stay(kind: type, backend: str) -> None:
    head = make(kind, backend=backend)
    head.fuse_optimizer(0.1)
    head.centers.requires_grad_(False)
    before = head.centers.clone()
    x, labels = batch(rows=3)
    head(x.requires_grad_(), labels).backward()
    assert torch.equal(head.centers, before) and x.grad.any()


BAD = {
    "kind": ({"kind": "lamb"}, "fuse_optimizer: kind must be one of ('sgd', 'adamw'), got 'lamb'"),
    "lr": ({"lr": -1.0}, "fuse_optimizer: lr must be at least 0, got -1.0"),
    "momentum": ({"momentum": -0.1}, "fuse_optimizer: momentum must be at least 0, got -0.1"),
    "betas": ({"betas": (0.9, 1.0)}, "fuse_optimizer: betas must lie in [0, 1), got (0.9, 1.0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        FullyConnected(4, 5, ArcFace()).fuse_optimizer(**{"lr": 0.1, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_whether_all_is_finite(dtype: torch.dtype) -> None:
    values = torch.randn(67, 33).to(dtype)
    values[0, 0], values[66, 32] = torch.finfo(dtype).max, torch.finfo(dtype).min  # whose sum would be none
    assert all_finite(values) and all_finite(values[:0]) and all_finite(values.new_zeros(0, 3))
    for place in ((0, 0), (40, 17), (66, 32)):
        for bad in (float("nan"), float("inf"), -float("inf")):
            spoilt = values.clone()
            spoilt[place] = bad
            assert not all_finite(spoilt), (place, bad)

"""The momentum encoder: what moves, what does not, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from attfc_cuda.heads.momentum_encoder import MomentumEncoder


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.PReLU(), nn.Linear(5, 3))


def shift(module, amount):
    """What an optimizer's step does, without one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount)


def test_it_starts_equal_and_shares_nothing():
    source = network()
    encoder = MomentumEncoder(source)
    assert torch.equal(parameters_to_vector(encoder.parameters()), parameters_to_vector(source.parameters()))
    pointers = {tensor.data_ptr() for tensor in [*source.parameters(), *source.buffers()]}
    assert not pointers & {tensor.data_ptr() for tensor in [*encoder.parameters(), *encoder.buffers()]}
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_update_is_the_exponential_moving_average():
    source = network()
    encoder = MomentumEncoder(source, momentum=0.75)
    expected = parameters_to_vector(source.parameters()).detach().double()
    for step in range(5):
        shift(source, 0.5 + step)
        encoder.update(source)
        expected = 0.75 * expected + 0.25 * parameters_to_vector(source.parameters()).detach().double()
    found = parameters_to_vector(encoder.parameters()).double()
    # A few roundings per update, of numbers up to 15.
    assert (found - expected).abs().max() <= 5 * 4 * 15 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("momentum, who", [(0.0, "source"), (1.0, "itself")])
def test_the_ends_of_the_range_follow_at_once_or_never(momentum, who):
    source = network()
    encoder = MomentumEncoder(source, momentum=0.5)
    encoder.momentum = momentum  # as a schedule would
    before = parameters_to_vector(encoder.parameters())
    shift(source, 1.0)
    encoder.update(source)
    expected = parameters_to_vector(source.parameters()) if who == "source" else before
    assert torch.equal(parameters_to_vector(encoder.parameters()), expected)


def test_no_gradient_reaches_anything_and_the_output_can_be_saved_for_backward():
    encoder = MomentumEncoder(network())
    inputs = torch.randn(4, 6, requires_grad=True)
    output = encoder(inputs)
    assert not output.requires_grad
    weight = torch.ones(4, 3, requires_grad=True)
    (weight * output).sum().backward()
    assert torch.equal(weight.grad, output) and inputs.grad is None


def test_own_buffers_move_by_their_own_forward_passes_only():
    source = network()
    encoder = MomentumEncoder(source, buffers="own")
    source(torch.randn(8, 6) + 3)
    encoder.update(source)
    assert torch.equal(encoder.module[1].running_mean, torch.zeros(5))
    encoder(torch.randn(8, 6))
    assert encoder.module[1].running_mean.abs().sum() > 0 and encoder.module[1].num_batches_tracked == 1


def test_copied_buffers_are_those_of_the_source():
    source = network()
    encoder = MomentumEncoder(source, buffers="copy")
    source(torch.randn(8, 6) + 3)
    encoder(torch.randn(8, 6))
    encoder.update(source)
    assert source[1].running_mean.abs().sum() > 0
    for own, theirs in zip(encoder.module.buffers(), source.buffers(), strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_it_stays_in_its_mode(training):
    source = network()
    encoder = MomentumEncoder(source).train(training)
    source.train(not training)
    before = encoder.module[1].running_mean.clone()
    encoder.update(source)
    output = encoder(torch.randn(8, 6) + 1)
    assert encoder.training is encoder.module[1].training is training and source.training is not training
    assert torch.equal(before, encoder.module[1].running_mean) is not training
    # In train mode the batch normalises itself: no feature of the batch is left with a mean.
    hidden = encoder.module[1](encoder.module[0](torch.randn(8, 6) + 1))
    assert (float(hidden.mean(0).abs().max()) < 1e-5) is training and output.shape == (8, 3)


def test_state_dict_round_trip():
    source = network()
    encoder = MomentumEncoder(source, momentum=0.9)
    shift(source, 1.0)
    encoder.update(source)
    encoder(torch.randn(8, 6))
    restored = MomentumEncoder(network(seed=1))
    restored.load_state_dict(copy.deepcopy(encoder.state_dict()))
    inputs = torch.randn(4, 6)
    assert torch.equal(restored(inputs), encoder(inputs))


def test_it_follows_a_compiled_source():
    source = network()
    encoder = MomentumEncoder(source, momentum=0.0, buffers="copy")
    shift(source, 1.0)
    encoder.update(torch.compile(source, backend="eager"))
    assert torch.equal(parameters_to_vector(encoder.parameters()), parameters_to_vector(source.parameters()))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match=rf"MomentumEncoder: momentum must lie in \[0, 1\], got {momentum}"):
        MomentumEncoder(network(), momentum=momentum)


def test_unknown_buffers():
    with pytest.raises(ValueError, match=r"buffers must be one of \('own', 'copy'\), got 'average'"):
        MomentumEncoder(network(), buffers="average")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_too_coarse_to_average(dtype):
    with pytest.raises(TypeError, match=rf"module must have float32 parameters, got {dtype} in 0.weight; .* autocast"):
        MomentumEncoder(network().to(dtype))


def test_another_network_is_refused():
    encoder = MomentumEncoder(network(), buffers="copy")
    with pytest.raises(ValueError, match=r"module must have the 7 parameters of the module that was copied, got 2"):
        encoder.update(nn.Linear(6, 5))
    wider = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"have shape \[5, 6\] as number 0 of its parameters, got \[4, 6\]"):
        encoder.update(wider)
    without = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.PReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"module must have the 3 buffers of the module that was copied, got 0"):
        encoder.update(without)


class Caching(nn.Module):
    """A network that keeps what it has computed, as attention maps and features are kept for a look at them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.last, self.kept = None, {}

    def forward(self, inputs):
        self.last = self.linear(inputs)
        self.kept["features"] = [self.last * 2]
        return self.last


@pytest.mark.parametrize("normed", ["caching", "hook", "parametrization"])
def test_a_network_that_holds_computed_tensors_is_copied_and_followed(normed):
    source = Caching()
    if normed == "hook":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(source.linear)
    elif normed == "parametrization":
        nn.utils.parametrizations.weight_norm(source.linear)
    inputs = torch.randn(4, 6)
    source(inputs).sum().backward()
    encoder = MomentumEncoder(source, momentum=0.0)
    assert torch.equal(encoder(inputs), source(inputs)) and source.last.requires_grad
    shift(source, 1.0)
    encoder.update(source)
    assert torch.equal(encoder(inputs), source(inputs)) and not encoder(inputs).requires_grad


def test_a_copy_that_was_cast_to_16_bits_is_refused_by_update():
    source = network()
    encoder = MomentumEncoder(source).half()
    with pytest.raises(TypeError, match=r"^MomentumEncoder.update: module must have float32 parameters, got torch"):
        encoder.update(source)


def test_a_source_that_was_cast_to_16_bits_is_followed_in_float32():
    source = network()
    encoder = MomentumEncoder(source, momentum=0.0, buffers="copy")
    encoder.update(source.bfloat16())
    assert torch.equal(parameters_to_vector(encoder.parameters()), parameters_to_vector(source.parameters()).float())

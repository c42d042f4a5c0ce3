"""The order of an epoch as a function: a permutation, the same in any part, uniform, with nothing stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc_cuda.data.permutation import SMALL, EpochOrder


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40), stored=st.booleans())
def test_every_number_once_in_any_part(count, seed, epoch, stored):
    order = EpochOrder(count, seed, 1, stored)
    whole = order.at(epoch, np.arange(count))
    assert whole.dtype == np.int64 and np.array_equal(np.sort(whole), np.arange(count))
    part = np.arange(count)[seed % count :: 3]
    assert np.array_equal(EpochOrder(count, seed, 1, stored).at(epoch, part), whole[part])
    assert len(order.at(epoch, part[:0])) == 0


def test_a_large_count_is_permuted_without_an_array():
    order = EpochOrder(42_000_001, 5, 1)
    assert not order.stored and EpochOrder(SMALL, 5, 1).stored
    positions = np.random.default_rng(0).choice(order.count, 100_000, replace=False)
    numbers = order.at(3, positions)
    assert len(np.unique(numbers)) == len(numbers) and numbers.min() >= 0 and numbers.max() < order.count
    assert order._order.size == 0


@pytest.mark.parametrize("count", [2**17, 100_003])
def test_orders_look_random(count):
    """Where the front comes from, and how far neighbours lie apart, are uniform; epochs are independent."""
    orders = [EpochOrder(count, seed, 1).at(epoch, np.arange(4096)) for seed in range(4) for epoch in range(16)]
    for samples in (np.concatenate(orders), np.concatenate([np.diff(order) % count for order in orders])):
        seen = np.bincount(samples * 64 // count, minlength=64)
        expected = len(samples) / 64
        assert np.abs(seen - expected).max() < 5 * expected**0.5  # five standard deviations
    same = np.mean([np.mean(a == b) for a, b in zip(orders, orders[1:], strict=False)])
    assert same < 5 * (1 / count / 4096 / 63) ** 0.5 + 1 / count
    assert len({tuple(order[:8]) for order in orders}) == len(orders)

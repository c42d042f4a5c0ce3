"""Learning rate and encoder momentum against their formulas."""

from __future__ import annotations

import pytest

from attfc_cuda.train.schedule import EncoderMomentum, LearningRate


@pytest.mark.parametrize("shape", ["cosine", "polynomial"])
def test_warm_up_rises_linearly_and_decay_ends_at_the_final_rate(shape: str) -> None:
    rate = LearningRate(peak=0.4, total=100, warmup_steps=8, final=0.05, shape=shape)
    assert [rate(k) for k in range(8)] == pytest.approx([0.05 * (k + 1) for k in range(8)])
    assert rate(8) == pytest.approx(0.4)
    assert rate(99) == pytest.approx(0.4 * 0.05)
    assert all(rate(k + 1) < rate(k) for k in range(8, 99))


def test_half_way_values() -> None:
    assert LearningRate(1.0, 101, 0)(50) == pytest.approx(0.5)
    assert LearningRate(1.0, 101, 0, shape="polynomial", power=2.0)(50) == pytest.approx(0.25)


def test_runs_of_one_step_and_all_warm_up_have_a_rate() -> None:
    assert LearningRate(0.1, 1, 0)(0) == pytest.approx(0.1)
    assert LearningRate(0.1, 2, 2)(1) == pytest.approx(0.1)


def test_encoder_momentum_warms_up_from_point_nine() -> None:
    momentum = EncoderMomentum(final=0.999, warmup_steps=10)
    values = [momentum(k) for k in range(12)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.99)  # half way: the geometric mean of 0.1 and 0.001
    assert values[10] == values[11] == 0.999
    assert values == sorted(values)


def test_a_low_final_momentum_is_used_from_the_start() -> None:
    assert [EncoderMomentum(0.5, 10)(k) for k in (0, 5, 20)] == [0.5, 0.5, 0.5]
    assert EncoderMomentum(0.999, 0)(0) == 0.999

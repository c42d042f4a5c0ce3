"""InsightFace's counting rules against a second restatement, loop by loop, and against `verify` on the same scores."""

from __future__ import annotations

import numpy as np
import pytest

from attfc_cuda.evaluation import verify
from attfc_cuda.evaluation.insightface_rules import count_as_insightface, nearest_tar_at_far


def scores(seed: int, pairs: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of genuine and impostor pairs, ten folds of equal halves in a row, as the .bin sets are laid out."""
    draw = np.random.default_rng(seed)
    same = np.tile(np.repeat([True, False], pairs // 20), 10)
    return np.clip(np.where(same, draw.normal(0.55, 0.14, pairs), draw.normal(0.02, 0.09, pairs)), -1, 1), same


def by_hand(similarity: np.ndarray, same: np.ndarray, far: float) -> tuple[float, float, float]:
    """(accuracy, TAR, FAR), every threshold and pair by itself."""
    folds = np.array_split(np.arange(len(same)), 10)
    accuracies, tars, fars = [], [], []
    for inside in folds:
        outside = np.setdiff1d(np.arange(len(same)), inside)
        distance = 2 - 2 * similarity
        best, most = 0.0, -1
        for step in range(400):
            right = sum((distance[outside] < step * 0.01) == same[outside])
            if right > most:
                best, most = step * 0.01, right
        accuracies.append(np.mean((distance[inside] < best) == same[inside]))
        impostors = distance[outside][~same[outside]]
        before, threshold = (0.0, 0.0), 0.0
        for step in range(4000):
            rate = np.mean(impostors < step * 0.001)
            if rate >= far:
                threshold = step * 0.001
                if rate > before[0]:
                    share = (far - before[0]) / (rate - before[0])
                    threshold = before[1] + share * (step * 0.001 - before[1])
                if rate > far or step == 3999 or np.mean(impostors < (step + 1) * 0.001) > far:
                    break
            before = (rate, step * 0.001)
        tars.append(np.mean(distance[inside][same[inside]] < threshold))
        fars.append(np.mean(distance[inside][~same[inside]] < threshold))
    return float(np.mean(accuracies)), float(np.mean(tars)), float(np.mean(fars))


def test_accuracy_and_tar_against_a_loop_over_thresholds():
    similarity, same = scores(0, pairs=200)
    counted = count_as_insightface(similarity, same, far=0.05)
    accuracy, tar, far = by_hand(similarity, same, 0.05)
    assert counted.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert counted.tar == pytest.approx(tar, abs=1e-12) and counted.far == pytest.approx(far, abs=1e-12)
    assert counted.named_far == 0.05 and counted.accuracy_std > 0


def test_the_threshold_is_strict():
    # Every pair lies on a step of the grid: a genuine pair at distance 1.0 is accepted from 1.01 on only.
    same = np.tile([True, False], 20)
    counted = count_as_insightface(np.where(same, 0.5, 0.495), same)
    assert counted.accuracy == 1.0  # at 1.01 exactly the genuine pairs lie below


def test_impostors_that_never_reach_the_rate_accept_nothing():
    same = np.tile([True, False], 20)
    assert count_as_insightface(np.where(same, 0.9, -1.0), same, far=0.5).tar == 0.0


def test_how_far_the_two_rules_lie_apart():
    """The numbers of docs/howto/verify.md: ten seeds of 6000 pairs."""
    accuracies, tars, fars = [], [], []
    for seed in range(10):
        similarity, same = scores(seed)
        ours = verify(similarity, same, np.repeat(np.arange(10), 600), far=(1e-3,))
        theirs = count_as_insightface(similarity, same)
        accuracies.append(theirs.accuracy - ours.accuracy)
        tars.append(theirs.tar - ours.tar_at_far[1e-3])
        fars.append(theirs.far)
    print(
        f"accuracy {np.mean(accuracies):+.4f}, at most {np.abs(accuracies).max():.4f}; TAR {np.mean(tars):+.4f}, "
        f"at most {np.abs(tars).max():.4f}; real FAR {min(fars):.4f} to {max(fars):.4f}"
    )
    assert abs(np.mean(accuracies)) < 5e-4 and np.abs(accuracies).max() < 3e-3
    assert abs(np.mean(tars)) < 2e-2
    # Interpolated thresholds do not hold the rate that they are named after; ours does, by construction.
    assert max(fars) > 1e-3


def test_the_nearest_point_may_exceed_the_rate_where_scores_tie():
    # Of 1000 impostors 3 score as a tenth of the genuine pairs do: 2 or 5 false accepts, nothing between.
    similarity = np.concatenate(
        [np.full(900, 0.9), np.full(100, 0.5), np.full(2, 0.6), np.full(3, 0.5), np.full(995, 0.1)]
    )
    same = np.arange(2000) < 1000
    (tar, far) = nearest_tar_at_far(similarity, same, [4e-3])[4e-3]
    assert (tar, far) == (1.0, 0.005)
    assert verify(similarity, same, None, far=(4e-3,)).tar_at_far[4e-3] == 0.9


@pytest.mark.parametrize(
    ("similarity", "same", "far", "message"),
    [
        (np.zeros(9), np.zeros(9, bool), 1e-3, "at least 10 pairs, one a fold, got 9"),
        (np.zeros(10), np.zeros(11, bool), 1e-3, "one entry per similarity"),
        (np.zeros(10), np.zeros(10, bool), 1.0, "far must lie between 0 and 1"),
    ],
)
def test_bad_input(similarity, same, far, message):
    with pytest.raises(ValueError, match=message):
        count_as_insightface(similarity, same, far)

"""All pairs of a data set: against a list of every pair, in bins against exact scores, and what cannot be judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from attfc_cuda.evaluation import all_pairs, verify_identities
from attfc_cuda.evaluation.all_pairs import RESOLUTION


def faces(identities: int, images: int, seed: int = 0, noise: float = 0.9, dtype=torch.float32):
    """Embeddings whose products are exact in float32 (sums of 16 products of numbers with at most 9 bits), so that no
    order of summation decides; in random order. Rows are shorter than 1, which nothing forbids."""
    draw = np.random.default_rng(seed)
    centers = np.repeat(draw.normal(size=(identities, 16)), images, axis=0)
    rows = centers + noise * draw.normal(size=centers.shape)
    rows = np.trunc(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 256) / 256
    identity = np.repeat(np.arange(identities) * 3, images)
    order = draw.permutation(len(rows))
    return torch.tensor(rows[order], dtype=dtype), identity[order]


def brute_force(embeddings, identity):
    """Score and truth of each pair, one by one."""
    a, b = np.triu_indices(len(identity), k=1)
    rows = embeddings.double().numpy()
    return (rows @ rows.T)[a, b], identity[a] == identity[b]


def at_far(score, same, rate):
    """TAR and false accepts at a rate by scikit-learn's curve."""
    false_rates, true_rates, thresholds = roc_curve(same, score, drop_intermediate=False)
    kept = np.flatnonzero(np.rint(false_rates * (~same).sum()) <= np.floor(rate * (~same).sum() + 1e-9))[-1]
    return true_rates[kept], thresholds[kept], thresholds[kept + 1]


@pytest.mark.parametrize("tile", [7, 64, 2048])
def test_all_pairs_are_those_of_a_list_of_every_pair(tile, monkeypatch):
    monkeypatch.setattr(all_pairs, "TILE", tile)
    embeddings, identity = faces(30, 4)
    score, same = brute_force(embeddings, identity)
    result, scores, _ = verify_identities(embeddings, identity, (0.1, 1e-2, 1e-3, 1e-4), replicates=50)
    assert (result.num_pairs, result.num_genuine, result.num_impostors) == (7140, 180, 6960)
    assert list(result.at_far) == [0.1, 1e-2, 1e-3]  # 1e-4 needs 10 000 impostors
    assert [point.few_impostors for point in result.at_far.values()] == [False, False, True]
    for rate, point in result.at_far.items():
        tar, accepted, rejected = at_far(score, same, rate)
        assert point.tar == result.tar_at_far[rate] == pytest.approx(tar, abs=1e-12)
        assert rejected < point.threshold <= accepted
        assert ((score >= point.threshold) & ~same).sum() == point.false_accepts <= rate * 6960
        assert ((score >= point.threshold) & same).sum() == round(point.tar * 180)
    assert result.auc == pytest.approx(roc_auc_score(same, score), abs=1e-12)
    assert result.all_pairs and result.resolution == 0 and result.num_identities == 30
    # Each pair once, with the images' own numbers.
    assert len({frozenset(pair) for pair in zip(scores.a.tolist(), scores.b.tolist(), strict=True)}) == 7140
    assert np.array_equal(identity[scores.a] == identity[scores.b], scores.same)
    products = (embeddings[scores.a] * embeddings[scores.b]).sum(1).numpy()
    assert np.array_equal(products, scores.similarity)


def test_bins_are_exact_for_scores_rounded_down():
    embeddings, identity = faces(30, 4)
    score, same = brute_force(embeddings, identity)
    exact = verify_identities(embeddings, identity, (0.1, 1e-2), replicates=300)
    binned = verify_identities(embeddings, identity, (0.1, 1e-2), replicates=300, exact_impostors=100)
    assert binned.result.resolution == RESOLUTION and binned.scores.a is None
    assert int(binned.scores.pair_count.sum()) == 7140
    rounded = np.floor(score / RESOLUTION) * RESOLUTION
    for rate, point in binned.result.at_far.items():
        tar, _, rejected = at_far(rounded, same, rate)
        assert point.tar == pytest.approx(tar, abs=1e-12)
        assert point.threshold == rejected + RESOLUTION  # a multiple: what it accepts is known
        assert ((score >= point.threshold) & same).sum() == round(point.tar * 180)
        assert ((score >= point.threshold) & ~same).sum() == point.false_accepts <= rate * 6960
        unrounded = exact.result.at_far[rate]
        assert abs(point.threshold - unrounded.threshold) <= RESOLUTION + np.ptp(at_far(score, same, rate)[1:])
        # The sample of impostors is another one; the intervals are of the same width to a fifth.
        for kind in ("tar_interval", "threshold_interval"):
            got, expected = getattr(point, kind), getattr(unrounded, kind)
            assert np.abs(np.subtract(got, expected)).max() <= 0.2 * (expected.high - expected.low)
    assert binned.result.auc == pytest.approx(roc_auc_score(same, rounded), abs=1e-12)
    assert binned.result.accuracy == exact.result.accuracy


def test_ties_pass_or_fail_together():
    """Three values only: every threshold has hundreds of pairs at it."""
    embeddings = torch.eye(4).repeat_interleave(10, dim=0)[:, :3]  # the fourth identity's rows are zero
    embeddings[::10] = 0.5 * embeddings[::10]
    embeddings[5] = embeddings[15]  # an image of the first identity that looks like the second
    identity = np.repeat(np.arange(4), 10)
    score, same = brute_force(embeddings, identity)
    for limit in (10**6, 1):
        result = verify_identities(embeddings, identity, (0.01, 0.1), replicates=50, exact_impostors=limit).result
        for rate, point in result.at_far.items():
            assert point.tar == pytest.approx(at_far(score, same, rate)[0], abs=1e-12)
            assert ((score >= point.threshold) & ~same).sum() == point.false_accepts
    assert result.tar_at_far[0.01] == 0.0  # 9 of 600 impostors score 1, 6 may pass: so may not one genuine pair


def test_float64_thresholds_stay_float64():
    embeddings, identity = faces(8, 3, dtype=torch.float64)
    embeddings += 2.0**-40 * torch.randn(embeddings.shape, dtype=torch.float64)
    score, same = brute_force(embeddings, identity)
    result = verify_identities(embeddings, identity, (0.1,), replicates=20).result
    point = result.at_far[0.1]
    assert result.threshold != float(np.float32(result.threshold))
    assert ((score >= point.threshold) & ~same).sum() == point.false_accepts == 25


def test_the_accuracy_weighs_both_kinds_and_follows_unseen_identities():
    embeddings, identity = faces(40, 3, noise=0.3)
    result = verify_identities(embeddings, identity, replicates=20).result
    assert result.num_folds == 10 and result.accuracy > 0.98
    # Genuine and impostor scores of one distribution: half of a balanced accuracy, though 99 % are impostors.
    shuffled = np.random.default_rng(0).permutation(identity)
    result = verify_identities(embeddings, shuffled, replicates=20).result
    assert 0.35 < result.accuracy < 0.65


def test_images_without_identity_take_no_part():
    embeddings, identity = faces(12, 3)
    expected = verify_identities(embeddings[identity < 30], identity[identity < 30], (0.1,), replicates=20).result
    without = np.where(identity < 30, identity, -1)
    assert verify_identities(embeddings, without, (0.1,), replicates=20).result == expected


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (np.zeros(6, int), "data must give at least 2 genuine and 2 impostor pairs, got 15 genuine and 0 impostor"),
        (np.arange(6), "data must give at least 2 genuine and 2 impostor pairs, got 0 genuine and 15 impostor"),
        (np.zeros(5, int), r"identity must have one entry per embedding \[N, D\]"),
    ],
)
def test_what_cannot_be_judged(identity, message):
    with pytest.raises(ValueError, match=message):
        verify_identities(faces(2, 3)[0], identity)


def test_rows_that_are_no_unit_rows_are_refused():
    embeddings, identity = faces(4, 3)
    with pytest.raises(ValueError, match="embeddings must have rows of unit length, got length .* in row 0"):
        verify_identities(embeddings * 3, identity)
    embeddings[2, 0] = float("nan")
    with pytest.raises(ValueError, match="unit length, got length nan in row 2"):
        verify_identities(embeddings, identity)
    with pytest.raises(ValueError, match="take different values, got the constant"):
        verify_identities(torch.full((12, 4), 0.5), identity)

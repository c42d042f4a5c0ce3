"""Intervals: their coverage of what is known, against a bootstrap that scores every pair again, and identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attfc_cuda.evaluation import verify_identities
from attfc_cuda.evaluation.intervals import (
    IdentityBootstrap,
    ImpostorSample,
    identities_of_pairs,
    kept_ranks,
    sample_impostors,
)
from attfc_cuda.evaluation.measure import pair_bootstrap
from attfc_cuda.evaluation.pairs import PairIndices, identities_of_files


def restated(score, same, first, second, weights, rate):
    """TAR and the highest rejected impostor score of one replicate: pairs copied as often as they weigh."""
    times = np.where(first == second, weights[first], weights[first] * weights[second])
    genuine, impostors = np.repeat(score[same], times[same]), np.repeat(score[~same], times[~same])
    if len(genuine) == 0 or len(impostors) == 0:
        return None
    allowed = int(np.floor(rate * len(impostors) + 1e-9))
    rejected = np.sort(impostors)[::-1][allowed]
    # All impostors tied with the first that may not pass are rejected with it.
    return (genuine > rejected).mean(), rejected


def few_faces(seed=0, identities=6, images=3):
    draw = np.random.default_rng(seed)
    group = np.repeat(np.arange(identities), images)
    a, b = np.triu_indices(len(group), k=1)
    same = group[a] == group[b]
    score = np.round(draw.normal(np.where(same, 0.5, 0.0), 0.3), 1)  # ties
    return score, same, group[a], group[b]


def test_replicates_are_those_of_copied_pairs():
    score, same, first, second = few_faces()
    impostors = sample_impostors(score[~same], first[~same], second[~same])
    bootstrap = IdentityBootstrap(score[same], first[same], impostors, 6, replicates=200, seed=3)
    tars, thresholds = bootstrap.replicates((0.3, 0.05))
    drawn = np.random.default_rng(3).integers(6, size=(200, 6))
    expected = [
        [restated(score, same, first, second, np.bincount(row, minlength=6), rate) for rate in (0.3, 0.05)]
        for row in drawn
    ]
    expected = [row for row in expected if row[0] is not None]
    assert len(tars) == len(expected) > 190
    for row, tar, threshold in zip(expected, tars, thresholds, strict=True):
        for k in range(2):
            assert tar[k] == pytest.approx(row[k][0], abs=1e-12)
            above = score[score > row[k][1] + 1e-9]
            assert row[k][1] <= threshold[k] <= (above.min() if len(above) else row[k][1])


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 5000, 10**9])
def test_kept_ranks_thin_out_and_stand_for_all(count):
    ranks = kept_ranks(count, highest=100)
    assert np.array_equal(ranks[:100], np.arange(min(count, 100)))
    assert (np.diff(ranks) > 0).all() and (count == 0 or ranks[-1] == count - 1)
    assert len(ranks) <= 100 * (1 + np.log(max(count, 100) / 100)) + 2
    gaps = np.diff(ranks, prepend=-1)
    assert (gaps <= 1 + 0.011 * (ranks + 1)).all()  # one in a hundred of the rank


def test_a_sample_gives_the_interval_of_all():
    """A sixth of the impostors against all of them: the ends move by less than a fifth of the width."""
    score, same, first, second = few_faces(1, identities=60, images=4)
    alike = np.random.default_rng(2).normal(0, 0.15, 60)  # some identities resemble all others
    score = score + alike[first] + alike[second]
    order = np.argsort(-score[~same], kind="stable")
    ones = np.ones(len(order))
    every = ImpostorSample(score[~same][order], first[~same][order], second[~same][order], ones)
    ranks = kept_ranks(len(order), highest=1000)
    some = ImpostorSample(*(column[ranks] for column in every[:3]), np.diff(ranks, prepend=-1).astype(float))
    assert len(ranks) < len(order) / 6 and some.mass.sum() == len(order)
    far = (0.1, 0.01, 0.001)
    full, thin = (IdentityBootstrap(score[same], first[same], kept, 60).intervals(far) for kept in (every, some))
    for (tar, threshold), (tar_thin, threshold_thin) in zip(full, thin, strict=True):
        assert np.abs(np.subtract(tar, tar_thin)).max() <= 0.2 * (tar.high - tar.low)
        assert np.abs(np.subtract(threshold, threshold_thin)).max() <= 0.2 * (threshold.high - threshold.low)


def drawn_faces(draw, identities, images=4):
    """Identities of unequal quality: the pairs of one resemble each other, and are far from independent."""
    noise = draw.uniform(0.3, 1.8, identities)
    centers = draw.normal(size=(identities, 8))
    rows = np.repeat(centers, images, axis=0)
    rows = rows + np.repeat(noise, images)[:, None] * draw.normal(size=rows.shape)
    return F.normalize(torch.tensor(rows)), np.repeat(np.arange(identities), images)


def test_an_interval_holds_the_true_rate_as_often_as_it_says():
    """Of 100 sets of 40 identities, the 95 % interval must hold the population's TAR at least 88 times (a binomial of
    0.95 is below that once in 250) and a bootstrap of pairs, which is too narrow, far less often."""
    draw = np.random.default_rng(0)
    population = verify_identities(*drawn_faces(draw, 500), (0.05,), replicates=2).result.tar_at_far[0.05]
    held = by_pairs = 0
    for _ in range(100):
        embeddings, identity = drawn_faces(draw, 40)
        point = verify_identities(embeddings, identity, (0.05,), replicates=200).result.at_far[0.05]
        held += point.tar_interval.low <= population <= point.tar_interval.high
        half = 1.96 * np.sqrt(point.tar * (1 - point.tar) / 240)  # as if 240 genuine pairs were independent
        by_pairs += abs(point.tar - population) <= half
    assert held >= 88, held
    assert by_pairs < held - 5, (by_pairs, held)


def test_too_few_identities_have_no_interval():
    score, same, first, second = few_faces(identities=2)
    bootstrap = IdentityBootstrap(
        score[same], first[same], sample_impostors(score[~same], first[~same], second[~same]), 2
    )
    # Both identities are drawn in half of the replicates only, on average.
    assert len(bootstrap.replicates((0.1,))[0]) == pytest.approx(500, abs=80)
    alone = IdentityBootstrap(score[same], 0 * first[same], ImpostorSample(*(np.array([0]),) * 3, np.ones(1)), 1)
    assert alone.intervals(()) == [] and alone.intervals((0.5,)) != [None]
    never = IdentityBootstrap(
        score[same], first[same], ImpostorSample(*(np.array([k]) for k in (0, 0, 1)), np.ones(1)), 9
    )
    assert never.intervals((0.5,)) == [None]  # the two identities of the only impostor pair are rarely drawn together


def test_identities_of_a_list_follow_its_genuine_pairs():
    a, b = np.array([0, 1, 3, 0, 5]), np.array([1, 2, 4, 3, 0])
    same = np.array([True, True, True, False, False])
    identity = identities_of_pairs(a, b, same, 6)
    assert identity[0] == identity[1] == identity[2] and identity[3] == identity[4]
    assert len(set(identity.tolist())) == 3


def test_identities_of_files_are_folders_unless_the_pairs_object(tmp_path):
    files = [tmp_path / name for name in ("a/1", "a/2", "b/1", "b/2")]
    pairs = PairIndices(np.array([0, 2, 0]), np.array([1, 3, 2]), np.array([True, True, False]), np.zeros(3, int))
    assert identities_of_files(files, pairs).tolist() == [0, 0, 1, 1]
    assert identities_of_files(files, pairs._replace(same=np.array([True, False, False]))) is None


def test_a_contradictory_list_still_has_intervals():
    """0 = 1 = 2 by genuine pairs, and 0 and 2 are called impostors."""
    a, b = np.array([0, 1, 0, 3, 0, 3]), np.array([1, 2, 2, 4, 3, 1])
    same = np.array([True, True, False, True, False, False])
    bootstrap = pair_bootstrap(np.linspace(0.9, 0.1, 6), PairIndices(a, b, same, np.zeros(6, int)))
    assert bootstrap.num_identities == 2
    tars, _ = bootstrap.replicates((0.5,))
    assert ((tars >= 0) & (tars <= 1)).all()
    assert pair_bootstrap(np.ones(2), PairIndices(a[:2], b[:2], same[:2], np.zeros(2, int))) is None

"""verify: metrics on cases counted by hand, against a direct restatement, and the errors."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc_cuda.evaluation import VerificationResult, verify

GENUINE, IMPOSTOR = [0.9, 0.8, 0.4], [0.6, 0.2, 0.1]


def two_equal_folds():
    similarity = np.array((GENUINE + IMPOSTOR) * 2)
    same = np.array(([True] * 3 + [False] * 3) * 2)
    return similarity, same, np.repeat([7, 8], 6)


def test_counts_by_hand():
    # Right answers by threshold: .9: 4, .8: 5, .6: 4, .4: 5, .2: 4, .1: 3 of 6. Highest of the best: .8, halfway to .6.
    result = verify(*two_equal_folds(), far=(0.5, 0.2, 0.1))
    assert result.fold_accuracies == (5 / 6, 5 / 6)
    assert result.accuracy == pytest.approx(5 / 6, abs=1e-15)
    assert result.accuracy_std == 0.0
    assert result.threshold == pytest.approx(0.7, abs=1e-15)
    assert result.auc == pytest.approx(8 / 9, abs=1e-15)  # of 9 (genuine, impostor) pairs only .4 < .6 is out of order
    assert result.eer == pytest.approx(1 / 3, abs=1e-15)  # threshold .6: a third of each kind is judged wrong
    # 6 impostors: at 0.5 three may pass (the two at .6), at 0.2 one may, but the two are tied; 0.1 needs 10 impostors.
    assert result.tar_at_far == {0.5: 1.0, 0.2: pytest.approx(2 / 3, abs=1e-15)}
    assert (result.num_pairs, result.num_genuine, result.num_impostors, result.num_folds) == (12, 6, 6, 2)


def test_equal_error_rate_between_two_points_of_the_curve():
    # ROC points (false, true): (0, 0) (0, 1/2) (1, 1/2) (1, 1). Between the middle two the gap 1/2 - x is 0 at x = 1/2.
    result = verify([0.9, 0.1, 0.5, 0.5], [True, True, False, False], [0, 1, 0, 1])
    assert result.eer == pytest.approx(0.5, abs=1e-15)


def test_threshold_comes_from_the_other_folds():
    # Within each fold the kinds are separable, but at different places: the other fold's threshold errs.
    similarity = [0.9, 0.8, 0.3, 0.2]
    result = verify(similarity, [True, False, True, False], [0, 0, 1, 1])
    assert result.fold_accuracies == (0.5, 0.5)  # threshold .25 accepts both of fold 0, .85 rejects both of fold 1


def test_perfect_and_inverted_similarity():
    same = np.array([True, False] * 20)
    fold = np.arange(40) // 4
    similarity = np.where(same, 0.5, 0.1) + np.linspace(0, 0.01, 40)
    best = verify(similarity, same, fold, far=(0.05,))
    assert (best.accuracy, best.auc, best.eer, best.tar_at_far) == (1.0, 1.0, 0.0, {0.05: 1.0})
    worst = verify(-similarity, same, fold, far=(0.05,))
    assert (worst.auc, worst.eer, worst.tar_at_far) == (0.0, 1.0, {0.05: 0.0})
    # Accepting nothing is best: a threshold just above the highest score outside. Only fold 0's impostors lie above it.
    assert worst.fold_accuracies == (0.0, *[0.5] * 9)


@pytest.mark.parametrize(
    ("impostors", "rates"), [(99, []), (100, [1e-2]), (999, [1e-2]), (1000, [1e-2, 1e-3]), (10_000, [1e-2, 1e-3, 1e-4])]
)
def test_a_rate_needs_its_inverse_in_impostor_pairs(impostors, rates):
    similarity = np.concatenate([np.linspace(0.5, 1.0, 10), np.linspace(0.0, 0.6, impostors)])
    same = np.arange(len(similarity)) < 10
    result = verify(similarity, same, np.arange(len(similarity)) % 2)
    assert list(result.tar_at_far) == rates


def restated(similarity, same, fold, far):
    """The same protocol, by trying every threshold and counting pairs one by one."""
    candidates = sorted(set(similarity), reverse=True)
    accuracies = []
    for number in sorted(set(fold)):
        outside = [(s, y) for s, y, f in zip(similarity, same, fold, strict=True) if f != number]
        scores = sorted({s for s, _ in outside}, reverse=True)
        best, threshold = sum(not y for _, y in outside), np.inf
        for rank, score in enumerate(scores):
            right = sum((s >= score) == y for s, y in outside)
            if right > best:
                best, threshold = right, (score + scores[rank + 1]) / 2 if rank + 1 < len(scores) else score
        if threshold == np.inf:
            threshold = np.nextafter(scores[0], np.inf)
        inside = [(s, y) for s, y, f in zip(similarity, same, fold, strict=True) if f == number]
        accuracies.append(sum((s >= threshold) == y for s, y in inside) / len(inside))
    genuine = [s for s, y in zip(similarity, same, strict=True) if y]
    impostor = [s for s, y in zip(similarity, same, strict=True) if not y]
    tar = 0.0
    for score in candidates:
        if sum(s >= score for s in impostor) <= far * len(impostor):
            tar = sum(s >= score for s in genuine) / len(genuine)
    order = sum((g > i) + 0.5 * (g == i) for g in genuine for i in impostor) / (len(genuine) * len(impostor))
    curve = [(0.0, 0.0)] + [
        (sum(s >= score for s in impostor) / len(impostor), sum(s >= score for s in genuine) / len(genuine))
        for score in candidates
    ]
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if 1 - y1 <= x1:
            share = (1 - y0 - x0) / ((1 - y0 - x0) - (1 - y1 - x1))
            return accuracies, order, tar, x0 + share * (x1 - x0)
    raise AssertionError("the curve ends at (1, 1), where the gap is negative")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 6), st.booleans(), st.integers(0, 2)), min_size=8, max_size=40),
    st.sampled_from([0.25, 0.4]),
)
def test_agrees_with_a_direct_restatement(rows, far):
    # Few distinct scores on purpose: ties within and across the kinds are where such code goes wrong.
    base = [(6, True, 0), (-6, False, 0), (5, True, 1), (-5, False, 1), (2, True, 2), (1, False, 2), (0, False, 2)]
    similarity, same, fold = (list(column) for column in zip(*(base + rows), strict=True))
    similarity = [value / 4 for value in similarity]
    result = verify(similarity, same, fold, far=(far,))
    accuracies, auc, tar, eer = restated(similarity, same, fold, far)
    # Sums of at most 50 fractions: each differs from the restated order of summation by a few units in the last place.
    assert result.fold_accuracies == pytest.approx(accuracies, abs=1e-12)
    assert result.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert result.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert result.auc == pytest.approx(auc, abs=1e-12)
    assert result.eer == pytest.approx(eer, abs=1e-12)
    assert result.tar_at_far[far] == pytest.approx(tar, abs=1e-12)


def replace(column, value):
    arguments = dict(zip(("similarity", "same", "fold"), two_equal_folds(), strict=True))
    arguments[column] = value(arguments[column]) if callable(value) else value
    return arguments


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (replace("similarity", np.full(12, 0.5)), ValueError, r"take different values, got the constant 0.5"),
        (replace("similarity", lambda s: np.where(np.arange(12) >= 3, np.nan, s)), ValueError,
         r"similarity must be finite, got 9 values that are not, the first nan at pair 3; look for NaN"),
        (replace("similarity", lambda s: np.where(np.arange(12) == 5, np.inf, s)), ValueError, r"first inf at pair 5"),
        (replace("similarity", np.zeros((3, 4))), ValueError, r"similarity must be \[P\] .* got shape \[3, 4\]"),
        (replace("similarity", np.zeros(0)), ValueError, r"at least one pair, got shape \[0\]"),
        (replace("same", np.ones(12, dtype=bool)), ValueError, r"same must hold .* 12 genuine and no impostor"),
        (replace("same", np.zeros(12, dtype=bool)), ValueError, r"same must hold .* 12 impostor and no genuine"),
        (replace("same", np.ones(12)), TypeError, r"same must be bool, got float64"),
        (replace("same", np.ones(11, dtype=bool)), ValueError, r"same must have .* \[12\], got \[11\]"),
        (replace("fold", np.zeros(12, dtype=int)), ValueError, r"at least 2 different folds, got 1 \(0\)"),
        (replace("fold", np.zeros(12)), TypeError, r"fold must be integers, got float64"),
        (replace("fold", np.zeros(13, dtype=int)), ValueError, r"fold must have one entry per similarity"),
        (replace("fold", lambda _: np.where(two_equal_folds()[1], 1, 2)), ValueError,
         r"hold genuine and impostor pairs outside fold 1, got 0 genuine of 6 pairs"),
        (replace("fold", lambda f: f) | {"far": (0.0,)}, ValueError, r"far must lie between 0 and 1, .* got 0.0"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_the_value(arguments, kind, message):
    with pytest.raises(kind, match=r"^verify: .*" + message):
        verify(**arguments)


def test_json_holds_every_number_and_replaces_the_file_at_once(tmp_path, monkeypatch):
    result = verify(*two_equal_folds(), far=(0.5,))
    path = tmp_path / "result.json"
    text = result.to_json(path)
    assert VerificationResult.from_dict(json.loads(text)) == result
    assert path.read_text() == text
    fields = json.loads(text)
    assert fields["tar_at_far"] == {"0.5": 1.0}
    assert fields["fold_accuracies"] == list(result.fold_accuracies)
    assert fields["num_impostors"] == 6

    def fails(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        result.to_json(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_summary_is_one_line_with_the_numbers():
    line = verify(*two_equal_folds(), far=(0.5,)).summary()
    assert "\n" not in line
    assert line.startswith("accuracy 0.8333 +- 0.0000, TAR 1.000 at FAR 0.5, EER 0.3333, AUC 0.8889")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_threshold_read_back_from_text_accepts_the_same_pairs(dtype):
    """Between neighbouring scores of a dtype there is no halfway; rounded down, the threshold would accept an impostor.
    scikit-learn 1.8 and later give float64 thresholds for any scores."""
    for low in np.linspace(0.1, 0.9, 41).astype(dtype):
        high = np.nextafter(low, dtype(1))
        similarity, same = np.array([low, low, high, high], dtype), np.array([False, False, True, True])
        read = float(json.loads(verify(similarity, same, None, far=()).to_json())["threshold"])
        for wide in (dtype, np.float64):
            assert ((similarity.astype(wide) >= wide(read)) == same).all(), (low, high, read)


def test_a_threshold_above_every_score_is_above_it_in_the_scores_dtype():
    similarity, same = np.array([0.25, 0.5, 0.75, 0.75], np.float32), np.array([True, False, False, False])
    threshold = verify(similarity, same, None, far=()).threshold
    assert np.float32(threshold) > np.float32(0.75)

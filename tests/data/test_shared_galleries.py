"""Batches of P identities x K probes on indices alone: every image once, galleries that are shared, whoever draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import _dataset, _sampler

counts_of_identities = st.lists(st.integers(1, 12), min_size=1, max_size=25).filter(lambda counts: max(counts) >= 2)


def _plans(sampler, epoch=0):
    return [sampler.plan(epoch, batch, True) for batch in range(sampler.num_batches)]


def _windows(sampler, epoch=0):
    """The plans of the steps that share a gallery, epoch in order."""
    first = 0
    while first < sampler.num_batches:
        steps = sampler.steps_of_gallery(first)
        assert steps[0] == first and all(sampler.steps_of_gallery(batch) == steps for batch in steps)
        yield [sampler.plan(epoch, batch, True, True) for batch in steps]
        first = steps.stop


@settings(deadline=None, max_examples=200)
@given(
    counts=counts_of_identities,
    batch_size=st.integers(1, 20),
    gallery_size=st.integers(0, 5),
    together=st.integers(1, 5),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
)
def test_one_epoch_against_the_contract(counts, batch_size, gallery_size, together, steps, seed, epoch):
    together += together == steps == 1
    dataset, counts = _dataset(counts, shuffle_seed=seed % 1000), np.array(counts)
    sampler = _sampler(dataset, batch_size, gallery_size, seed, probes_per_identity=together, gallery_steps=steps)
    windows = list(_windows(sampler, epoch))
    plans = sum(windows, [])
    assert len(plans) == sampler.num_batches and {len(window) for window in windows[:-2]} <= {steps}
    is_probe = counts[dataset.labels] >= 2
    assert np.array_equal(np.sort(np.concatenate([plan.probe for plan in plans])), np.flatnonzero(is_probe))
    assert np.array_equal(np.sort(np.concatenate([plan.negatives for plan in plans])), np.flatnonzero(~is_probe))
    for batch, plan in enumerate(plans):
        assert len(plan.seeds) == len(plan.probe) + len(plan.gallery) + len(plan.negatives)
        again = sampler.plan(epoch, batch, True, True, with_gallery=True)
        assert np.array_equal(again.gallery_rows, plan.gallery_rows) and np.array_equal(again.probe, plan.probe)
        begun = next(window[0] for window in windows if any(plan is other for other in window))
        assert np.array_equal(again.gallery, begun.gallery)
    for window in windows:
        shared, probes = window[0].gallery, np.concatenate([plan.probe for plan in window])
        rows = np.concatenate([plan.gallery_rows for plan in window])
        assert all(plan.gallery.shape == plan.mirror_gallery.shape == (0,) for plan in window[1:])
        assert shared.shape == window[0].mirror_gallery.shape == (len(set(shared.tolist())),)  # each once
        assert rows.shape == (len(probes), gallery_size)
        assert np.array_equal(np.unique(rows), np.arange(len(shared)))  # none for nothing
        labels = dataset.labels[probes]
        for probe, label, row in zip(probes, labels, shared[rows], strict=True):
            assert (dataset.labels[row] == label).all() and probe not in row
            assert len(set(row)) == min(gallery_size, counts[label] - 1)  # repeats only when there must be
        for label, drawn in zip(*np.unique(labels, return_counts=True), strict=True):
            own = shared[dataset.labels[shared] == label]
            free = counts[label] - drawn
            if free >= gallery_size:
                assert len(own) == gallery_size and not set(own) & set(probes)
            else:
                assert len(own) == min(gallery_size + (drawn > 1), counts[label] - (drawn == 1))
                assert len(set(own) - set(probes)) == free


@settings(deadline=None, max_examples=60)
@given(
    counts=counts_of_identities,
    batch_size=st.integers(4, 20),
    together=st.integers(1, 4),
    steps=st.integers(1, 3),
    world_size=st.integers(2, 4),
    gallery_size=st.integers(0, 3),
)
def test_the_parts_of_a_batch_are_the_batch(counts, batch_size, together, steps, world_size, gallery_size):
    together += together == steps == 1
    dataset, usable = _dataset(counts), sum(count for count in counts if count >= 2)
    given_ = dict(drop_last=True, gallery_size=gallery_size, probes_per_identity=together, gallery_steps=steps)
    if usable < batch_size:
        with pytest.raises(ValueError, match="batch_size must fit into an epoch"):
            _sampler(dataset, batch_size, **given_)
        return
    alone = _sampler(dataset, batch_size, **given_)
    parts = [_sampler(dataset, batch_size, rank=rank, world_size=world_size, **given_) for rank in range(world_size)]
    galleries = [None] * (1 + world_size)
    for batch in range(alone.num_batches):
        plans = whole, *of_processes = [one.plan(2, batch, True, True) for one in (alone, *parts)]
        for name in ("probe", "negatives", "mirror_probe", "mirror_negatives"):
            expected = getattr(whole, name)
            assert np.array_equal(np.concatenate([getattr(plan, name) for plan in of_processes]), expected)
        for number, plan in enumerate(plans):
            assert len(plan.seeds) == len(plan.probe) + len(plan.gallery) + len(plan.negatives)
            assert len(set(plan.gallery.tolist())) == len(plan.gallery)
            if batch == alone.steps_of_gallery(batch)[0]:
                seeds = plan.seeds[len(plan.probe) : len(plan.probe) + len(plan.gallery)]
                galleries[number] = plan.gallery, plan.mirror_gallery, seeds
        # The same views of the same images for every probe.
        views = [[view[plan.gallery_rows] for view in of] for plan, of in zip(plans, galleries, strict=True)]
        for expected, *found in zip(*views, strict=True):
            assert np.array_equal(np.concatenate(found), expected)


def test_steps_that_share_a_gallery_have_many_identities_each():
    dataset = _dataset([12] * 200)
    for window in _windows(_sampler(dataset, 32, 2, probes_per_identity=1, gallery_steps=4, drop_last=True)):
        if len(window) < 4:
            continue
        assert len(window[0].gallery) <= 2 * 32
        of_rows = dataset.labels[np.stack([plan.probe for plan in window])]
        assert (of_rows == of_rows[0]).all()  # a row goes on with its identity
        assert len(set(of_rows[0].tolist())) > 20
    pairs = _sampler(dataset, 32, 2, probes_per_identity=2, gallery_steps=2, drop_last=True)
    window = next(_windows(pairs))
    labels = dataset.labels[window[0].probe].reshape(-1, 2)
    assert (labels[:, 0] == labels[:, 1]).all() and (dataset.labels[window[1].probe].reshape(-1, 2) == labels).all()


def test_groups_are_whole_where_the_numbers_allow_it():
    dataset = _dataset([12] * 40 + [4] * 40)
    for plan in _plans(_sampler(dataset, 32, 2, probes_per_identity=4)):
        sizes = np.unique(dataset.labels[plan.probe], return_counts=True)[1]
        assert (sizes % 4 == 0).all() and len(sizes) >= 5
    # Groups smaller than K lie side by side, and fill a run.
    dataset = _dataset([2] * 60)
    for plan in _plans(_sampler(dataset, 12, 2, probes_per_identity=4)):
        assert (np.unique(dataset.labels[plan.probe], return_counts=True)[1] == 2).all()


def test_what_is_drawn_together_is_drawn_anew_and_evenly():
    # 4 images in pairs: each of the three ways equally often, and of the two others each is the pair's gallery.
    dataset = _dataset([4] * 8)
    sampler = _sampler(dataset, 32, 1, probes_per_identity=2)
    ways, first_of_gallery, neighbours = np.zeros(4), [], np.zeros((8, 8))
    epochs = 600
    for epoch in range(epochs):
        slots = [sampler._probes.at(epoch, np.arange(2 * pair, 2 * pair + 2)) for pair in range(16)]
        for pair in slots:
            assert pair[0] // 4 == pair[1] // 4
            if 0 in pair % 4:
                ways[pair.sum() - 8 * (pair[0] // 4)] += 1
        plan = _sampler(dataset, 2, 1, probes_per_identity=2).plan(epoch, 0, True)
        others = sorted(set(range(4)) - set((plan.probe % 4).tolist()))
        first_of_gallery.append(others.index(plan.gallery[0] % 4))
        order = [pair[0] // 4 for pair in slots]
        for a, b in zip(order, order[1:], strict=False):
            neighbours[a, b] += 1
    total = 8 * epochs
    assert ways[0] == 0 and np.abs(ways[1:] - total / 3).max() < 5 * (total * 2 / 9) ** 0.5  # five standard deviations
    assert abs(sum(first_of_gallery) - epochs / 2) < 5 * epochs**0.5 / 2
    # Identities stand beside each other in every combination, themselves less often: they have two pairs each.
    off = neighbours[~np.eye(8, dtype=bool)]
    assert off.min() > 0.8 * off.mean() and off.max() < 1.2 * off.mean()


def test_identities_left_over_meet_others_in_each_epoch():
    dataset = _dataset([2] * 40)
    sampler = _sampler(dataset, 80, 1, probes_per_identity=4)
    partners = set()
    for epoch in range(20):
        labels = sampler._probes.at(epoch, np.arange(80)) // 2
        run = next(run for run in labels.reshape(-1, 4) if 0 in run)
        partners |= set(run.tolist()) - {0}
    assert len(partners) > 10


def test_a_million_identities():
    counts = np.full(1_000_000, 2)
    counts[::4], counts[7], counts[1::4] = 1, 5000, 9
    dataset = _dataset(counts)
    sampler = _sampler(dataset, 512, 2, drop_last=True, probes_per_identity=4)
    plan = sampler.plan(3, sampler.num_batches - 1, True)
    assert len(plan.probe) == 512 and len(plan.gallery) < 512
    assert (dataset.labels[plan.gallery][plan.gallery_rows] == dataset.labels[plan.probe][:, None]).all()
    assert (plan.gallery[plan.gallery_rows] != plan.probe[:, None]).all()


def test_single_images_that_must_be_probes_are_their_own_gallery():
    plan = _sampler(_dataset([1, 1, 1, 1]), 4, 2, min_images=1, probes_per_identity=2).plan(0, 0, True)
    assert np.array_equal(plan.gallery[plan.gallery_rows], np.repeat(plan.probe[:, None], 2, axis=1))
    assert len(plan.gallery) == 4

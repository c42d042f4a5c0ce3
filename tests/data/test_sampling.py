"""The arithmetic of batches, on indices alone: who is a probe, who is in its gallery, what the numbers depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc_cuda.data._random import random_words, unit_interval
from attfc_cuda.data.faces import FaceDataset
from attfc_cuda.data.sampling import AttentionSampler


def _dataset(counts, shuffle_seed=None):
    labels = np.repeat(np.arange(len(counts)), counts)
    if shuffle_seed is not None:  # images of an identity need not lie side by side
        labels = np.random.default_rng(shuffle_seed).permutation(labels)
    return FaceDataset(labels, [f"id{k}" for k in range(len(counts))], 8)


def _sampler(dataset, batch_size=4, gallery_size=2, seed=0, min_images=2, negatives="auto", drop_last=False, rank=0,
             world_size=1, probes_per_identity=1, gallery_steps=1):  # fmt: skip
    return AttentionSampler(
        dataset, batch_size, gallery_size, seed, min_images, negatives, drop_last, rank, world_size,
        probes_per_identity, gallery_steps,
    )  # fmt: skip


def _epoch(sampler, epoch=0):
    plans = [sampler.plan(epoch, batch, True) for batch in range(sampler.num_batches)]
    return tuple(np.concatenate(parts) for parts in zip(*plans, strict=True))


counts_of_identities = st.lists(st.integers(1, 7), min_size=1, max_size=25).filter(lambda counts: max(counts) >= 2)


@settings(deadline=None, max_examples=150)
@given(
    counts=counts_of_identities,
    batch_size=st.integers(1, 9),
    gallery_size=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
)
def test_one_epoch_against_the_contract(counts, batch_size, gallery_size, seed, epoch):
    dataset = _dataset(counts, shuffle_seed=seed % 1000)
    sampler = _sampler(dataset, batch_size, gallery_size, seed)
    probes, gallery, negatives, *mirrors, _, rows = _epoch(sampler, epoch)
    counts = np.array(counts)

    # Every image of an identity with others is a probe exactly once; every other image is a negative exactly once.
    is_probe = counts[dataset.labels] >= 2
    assert np.array_equal(np.sort(probes), np.flatnonzero(is_probe))
    assert np.array_equal(np.sort(negatives), np.flatnonzero(~is_probe))

    assert gallery.shape == (len(probes), gallery_size)
    assert np.array_equal(dataset.labels[gallery], np.repeat(dataset.labels[probes][:, None], gallery_size, axis=1))
    for probe, row in zip(probes, gallery, strict=True):
        assert probe not in row
        assert len(set(row)) == min(gallery_size, counts[dataset.labels[probe]] - 1)  # repeats only when there must be
    assert [mirror.shape for mirror in mirrors] == [probes.shape, gallery.shape, negatives.shape]
    in_batch = np.arange(len(probes))[:, None] % batch_size * gallery_size + np.arange(gallery_size)
    assert np.array_equal(rows, in_batch)  # each probe's are its own


def _images(plan):
    """A key for each image of the plan, in the order of its seeds: its place by probe, or its number as a negative."""
    rows = [(int(probe), -1, 0) for probe in plan.probe]
    rows += [
        (int(p), place, int(g)) for p, row in zip(plan.probe, plan.gallery, strict=True) for place, g in enumerate(row)
    ]
    return rows + [(-1, -1, int(negative)) for negative in plan.negatives]


@settings(deadline=None, max_examples=60)
@given(
    counts=counts_of_identities,
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    negatives=st.sampled_from(["auto", 0, 3]),
    drop_last=st.booleans(),
)
def test_the_parts_of_a_batch_are_the_batch(counts, batch_size, world_size, negatives, drop_last):
    dataset, usable = _dataset(counts), sum(count for count in counts if count >= 2)
    arguments = dict(negatives=negatives, drop_last=drop_last)
    last = usable % batch_size
    if batch_size < world_size or (drop_last and usable < batch_size) or (not drop_last and 0 < last < world_size):
        with pytest.raises(ValueError, match="(batch_size must|drop_last must leave a row to each process, got False)"):
            _sampler(dataset, batch_size, world_size=world_size, **arguments)
        return
    alone = _sampler(dataset, batch_size, **arguments)
    processes = [
        _sampler(dataset, batch_size, rank=rank, world_size=world_size, **arguments) for rank in range(world_size)
    ]
    for batch in range(alone.num_batches):
        plans, expected = [one.plan(1, batch, True, True) for one in processes], alone.plan(1, batch, True, True)
        for number in range(6):
            assert np.array_equal(np.concatenate([plan[number] for plan in plans]), expected[number])
        sizes = [len(plan.probe) for plan in plans]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
        # The seed of an image's augmentation goes where the image goes.
        seed_of = {}
        for image, seed in zip(_images(expected), expected.seeds, strict=True):
            seed_of.setdefault(image, set()).add(seed)
        for plan in plans:
            assert all(seed in seed_of[image] for image, seed in zip(_images(plan), plan.seeds, strict=True))
            assert len(plan.seeds) == len(_images(plan))
        assert len(processes[0].plan(1, batch, True).seeds) == 0
    assert {one.num_batches for one in processes} == {alone.num_batches}


def test_a_row_depends_on_its_position_and_not_on_the_batch_size():
    dataset = _dataset([5] * 30)
    *small, _ = _epoch(_sampler(dataset, 7), 1)
    *large, _ = _epoch(_sampler(dataset, 64), 1)
    for a, b in zip(small, large, strict=True):
        assert np.array_equal(a, b)


def test_seed_and_epoch_change_order_gallery_and_mirroring():
    dataset = _dataset([6] * 50)
    base = _epoch(_sampler(dataset))
    for other in (_epoch(_sampler(dataset, seed=1)), _epoch(_sampler(dataset), 1)):
        assert (base[0] == other[0]).mean() < 0.1
        by_probe = [plan[1][np.argsort(plan[0])] for plan in (base, other)]
        assert (by_probe[0] == by_probe[1]).all(axis=1).mean() < 0.2  # 1 in 20 by chance
        assert 0.3 < (base[3] == other[3]).mean() < 0.7
    again = _epoch(_sampler(dataset))
    assert all(np.array_equal(a, b) for a, b in zip(base, again, strict=True))


def test_gallery_and_mirroring_are_uniform():
    # 5 images, r = 2: each of the 12 ordered pairs of others equally often, and each of the 8 mirrorings.
    dataset = _dataset([5])
    sampler = _sampler(dataset, 5, 2)
    plans = [sampler.plan(epoch, 0, True) for epoch in range(2000)]
    probes, gallery = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("probe", "gallery"))
    pairs = (gallery - probes[:, None]) % 5
    seen = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    expected = len(pairs) / 12
    assert (seen > 0).sum() == 12
    assert np.abs(seen[seen > 0] - expected).max() < 5 * expected**0.5  # five standard deviations
    mirrors = np.concatenate([np.column_stack([plan.mirror_probe, plan.mirror_gallery]) for plan in plans])
    kinds = np.bincount(mirrors @ [1, 2, 4], minlength=8)
    assert np.abs(kinds - len(mirrors) / 8).max() < 5 * (len(mirrors) / 8) ** 0.5
    first = np.concatenate([plan.probe[:1] for plan in plans])
    assert np.abs(np.bincount(first) - 400).max() < 5 * 20  # the order of the epoch


@pytest.mark.parametrize("min_images", [1, 3, 5])
def test_min_images_decides_who_is_a_probe(min_images):
    counts = np.array([1, 2, 3, 4, 5, 5])
    dataset = _dataset(counts)
    probes, gallery, negatives, *_ = _epoch(_sampler(dataset, min_images=min_images))
    assert set(dataset.labels[probes]) == set(np.flatnonzero(counts >= min_images))
    assert set(dataset.labels[negatives]) == set(np.flatnonzero(counts < min_images))
    if min_images == 1:  # the single image has only itself
        assert (gallery[probes == 0] == 0).all()
        assert (gallery[probes > 0] != probes[probes > 0][:, None]).all()


def test_fixed_number_of_negatives():
    dataset = _dataset([2] * 20 + [1] * 7)
    for wanted, given_ in ((0, 0), (3, 3), (7, 7), (50, 7)):
        sampler = _sampler(dataset, 4, negatives=wanted)
        plans = [sampler.plan(0, batch, True) for batch in range(sampler.num_batches)]
        assert [len(plan.negatives) for plan in plans] == [given_] * 10
        for plan in plans:
            assert len(set(plan.negatives)) == given_  # a batch never has one twice while they suffice
        if given_:
            seen = np.bincount(np.concatenate([plan.negatives for plan in plans]) - 40, minlength=7)
            assert seen.sum() == 10 * given_ and seen.max() - seen.min() <= 1
    assert len(_sampler(_dataset([2] * 20), 4, negatives=3).plan(0, 0, True).negatives) == 0


def test_auto_negatives_are_spread_evenly():
    sampler = _sampler(_dataset([2] * 20 + [1] * 7), 4)
    sizes = [len(sampler.plan(0, batch, True).negatives) for batch in range(10)]
    assert sum(sizes) == 7 and set(sizes) == {0, 1}


def test_no_mirroring_when_off():
    plan = _sampler(_dataset([3] * 10 + [1] * 10)).plan(0, 0, False)
    assert not (plan.mirror_probe.any() or plan.mirror_gallery.any() or plan.mirror_negatives.any())


def test_a_million_identities():
    # Mostly pairs, with singles and a heavy identity: only array arithmetic can do this in a test's time.
    counts = np.full(1_000_000, 2)
    counts[::4], counts[7] = 1, 5000
    dataset = _dataset(counts)
    sampler = _sampler(dataset, 512, 3, drop_last=True)
    assert sampler.num_probes == counts[counts > 1].sum() and sampler.num_negatives == 250_000
    plan = sampler.plan(3, sampler.num_batches - 1, True)
    assert (dataset.labels[plan.gallery] == dataset.labels[plan.probe][:, None]).all()
    assert (plan.gallery != plan.probe[:, None]).all()


def test_random_words_have_addresses():
    whole = random_words(3, 2, 40, minor=5, major=6)
    assert np.array_equal(random_words(3, 2, 12, start=7, minor=5, major=6), whole[28:])
    streams = [random_words(seed, stream, 64, minor=minor, major=major)
               for seed in (0, 2**64 - 1) for stream in (1, 2) for minor in (0, 9) for major in (0, 2**40)]  # fmt: skip
    assert len(np.unique(np.concatenate(streams))) == 16 * 64
    unit = unit_interval(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert unit[0] == 0 and 1 - 2**-52 < unit[1] < 1

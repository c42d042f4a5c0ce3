"""The attention loader with images: what arrives in a batch, and that a run can stop and go on anywhere."""

import gc
import re
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import (
    AttentionLoader,
    Batch,
    FaceDataset,
    FolderFaces,
    ProceduralFaces,
    TooManyUnreadable,
    UnreadableImage,
    build_dataset,
)
from attfc_cuda.data.identities import unpacked_identities

SIZE = 8


class NumberedFaces(FaceDataset):
    """Image i shows its own number in the left half, and 255 at the right edge so that a mirrored one is recognised."""

    def __init__(self, counts, broken=(), on_bad_image="raise"):
        super().__init__(np.repeat(np.arange(len(counts)), counts), [f"id{k}" for k in range(len(counts))], SIZE)
        self.broken, self.on_bad_image = frozenset(broken), on_bad_image

    def _load(self, index):
        if index in self.broken:
            raise UnreadableImage(f"image {index} is broken")
        image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        image[0, :, 0], image[1, :, 0] = index % 256, index // 256
        image[:, :, -1] = 255
        return image


def _numbers(images):
    """Image numbers and whether each is mirrored, from [..., 3, H, W] in [-1, 1]."""
    pixels = (images * 127.5 + 127.5).round().long()
    mirrored = pixels[..., 2, 0, 0] == 255
    upright = torch.where(mirrored[..., None, None, None], pixels.flip(-1), pixels)
    return upright[..., 0, 0, 0] + 256 * upright[..., 1, 0, 0], mirrored


def _equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(ours, theirs)
        for batch, other in zip(batches, others, strict=True)
        for ours, theirs in zip(batch, other, strict=True)
    )


def test_batches_are_what_they_claim():
    dataset = NumberedFaces([4, 1, 3, 2, 1, 5] * 10)
    loader = AttentionLoader(dataset, 16, 2, drop_last=False)
    labels_of, seen, negatives = torch.from_numpy(dataset.labels), [], []
    batches = list(loader)
    assert len(batches) == len(loader) == 9
    for batch in batches:
        assert isinstance(batch, Batch)
        rows = len(batch.labels)
        assert batch.probe.shape == (rows, 3, SIZE, SIZE) and batch.gallery.shape == (rows, 2, 3, SIZE, SIZE)
        assert batch.probe.dtype == batch.gallery.dtype == batch.negatives.dtype == torch.float32
        assert batch.labels.dtype == batch.negative_labels.dtype == torch.int64
        assert batch.probe.min() == -1 and batch.probe.max() == 1
        (probe, _), (gallery, _), (negative, _) = map(_numbers, (batch.probe, batch.gallery, batch.negatives))
        assert torch.equal(labels_of[probe], batch.labels)
        assert torch.equal(labels_of[gallery], batch.labels[:, None].expand(-1, 2))
        assert (gallery != probe[:, None]).all()
        assert torch.equal(batch.gallery_rows, torch.arange(2 * rows).view(rows, 2))
        assert torch.equal(labels_of[negative], batch.negative_labels)
        seen += probe.tolist()
        negatives += negative.tolist()
    single = np.bincount(dataset.labels)[dataset.labels] == 1
    assert sorted(seen) == np.flatnonzero(~single).tolist() and loader.num_probes == 140
    assert sorted(negatives) == np.flatnonzero(single).tolist() and loader.num_classes == 60


def test_probes_of_an_identity_share_its_gallery():
    dataset = NumberedFaces([4, 1, 3, 2, 1, 9] * 10)
    loader = AttentionLoader(dataset, 16, 2, drop_last=False, probes_per_identity=4)
    labels_of, seen, images, seconds = torch.from_numpy(dataset.labels), [], 0, 0
    for batch in loader:
        (probe, _), (gallery, _) = map(_numbers, (batch.probe, batch.gallery))
        assert batch.gallery.ndim == 4 and len(gallery.unique()) == len(gallery)
        assert torch.equal(labels_of[probe], batch.labels)
        assert torch.equal(labels_of[gallery][batch.gallery_rows], batch.labels[:, None].expand(-1, 2))
        assert (gallery[batch.gallery_rows] != probe[:, None]).all()
        seen += probe.tolist()
        images, seconds = images + len(gallery), seconds + batch.gallery_rows.numel()
    assert sorted(seen) == np.flatnonzero(np.bincount(dataset.labels)[dataset.labels] > 1).tolist()
    assert images < 0.6 * seconds
    assert "  4 probes of an identity share its gallery" in loader.report()


def _galleries(batches):
    """The gallery images of each row of each batch, from its own or the last batch that had any."""
    for batch in batches:
        if len(batch.gallery):
            images = batch.gallery.flatten(0, -4)
        yield images[batch.gallery_rows]


def test_steps_share_a_gallery_and_a_run_resumes_between_them():
    def make():
        return AttentionLoader(NumberedFaces([9] * 16 + [1] * 5), 12, 2, seed=4, gallery_steps=5)

    loader, whole, states = make(), [], []
    for _ in range(2):
        for batch in loader:
            whole.append(batch)
            states.append((loader.state_dict(), loader.between_steps_of_a_gallery))
    assert [len(batch.gallery) > 0 for batch in whole[:12]] == [number % 5 == 0 for number in range(12)]
    assert [between for _, between in states[:12]] == [number % 5 != 0 for number in range(1, 12)] + [False]
    assert "  1 probe of an identity in each of 5 batches share its gallery" in loader.report()
    galleries = list(_galleries(whole))
    for stop in (1, 5, 7, 14):
        resumed, rest = make(), []
        resumed.load_state_dict(states[stop - 1][0])
        while len(rest) < 24 - stop:
            rest += list(resumed)
        assert len(rest[0].gallery) > 0  # of a step in between too
        assert all(map(torch.equal, galleries[stop:], _galleries(rest)))
        for ours, theirs in zip(whole[stop:], rest, strict=True):
            fields = ("probe", "labels", "negatives", "negative_labels", "gallery_rows")
            assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in fields)


def test_without_a_gallery_the_probes_are_the_same():
    dataset = NumberedFaces([4, 1, 3, 2, 1, 5] * 10)
    with_gallery = AttentionLoader(dataset, 16, 2, drop_last=False)
    without = AttentionLoader(dataset, 16, 0, drop_last=False, negatives_per_batch=0)
    for full, batch in zip(with_gallery, without, strict=True):
        assert batch.gallery.shape == (len(batch.labels), 0, 3, SIZE, SIZE) and len(batch.negatives) == 0
        assert torch.equal(_numbers(batch.probe)[0], _numbers(full.probe)[0])
        assert torch.equal(batch.labels, full.labels)


def test_mirroring():
    dataset = NumberedFaces([4] * 100 + [1] * 100)
    batch = next(iter(AttentionLoader(dataset, 256, 2, negatives_per_batch=100)))
    shares = [_numbers(images)[1].float().mean() for images in (batch.probe, batch.gallery[:, 0], batch.gallery[:, 1],
                                                                batch.negatives)]  # fmt: skip
    assert all(abs(share - 0.5) < 5 * 0.5 / 100**0.5 for share in shares)  # five standard deviations of the smallest
    plain = next(iter(AttentionLoader(dataset, 256, 2, negatives_per_batch=100, augment="none")))
    assert not any(_numbers(images)[1].any() for images in (plain.probe, plain.gallery, plain.negatives))
    assert torch.equal(_numbers(plain.probe)[0], _numbers(batch.probe)[0])  # mirroring changes nothing else


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("stop", [1, 4, 9, 10, 13])
def test_resumes_to_the_identical_rest(stop, together):
    # 10 batches an epoch; 10 is the state taken in the body of the epoch's last batch.

    def make():
        dataset = NumberedFaces([3] * 26 + [1] * 5)
        return AttentionLoader(dataset, 8, 2, drop_last=False, seed=4, probes_per_identity=together)

    loader, whole, state = make(), [], None
    assert len(loader) == 10
    for _ in range(3):
        for batch in loader:
            whole.append(batch)
            if len(whole) == stop:
                state = loader.state_dict()
    assert len(whole) == 30
    resumed = make()
    resumed.load_state_dict(state)
    rest = []
    while len(rest) < 30 - stop:
        rest += list(resumed)
    assert _equal(whole[stop:], rest)
    assert loader.state_dict() == resumed.state_dict()


def test_leaving_the_loop_goes_on_where_it_was():
    a, b = (AttentionLoader(NumberedFaces([3] * 20), 8, 1) for _ in range(2))
    broken_off = []
    while len(broken_off) < 2 * len(a):
        for batch in a:
            broken_off.append(batch)
            if len(broken_off) % 3 == 0:
                break
    assert _equal(broken_off, list(b) + list(b))


def test_state_is_plain_and_survives_weights_only_loading(tmp_path):
    loader = AttentionLoader(NumberedFaces([3] * 20), 8, 1)
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == loader.state_dict()


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    dataset = ProceduralFaces(9, 3, 16)
    here, there = (AttentionLoader(dataset, 4, 2, num_workers=n) for n in (0, workers))
    first, second = list(here), list(there)
    assert _equal(first, second) and here.state_dict() == there.state_dict()
    there.load_state_dict({**there.state_dict(), "pass": 0, "batch": 3})
    assert _equal(first[3:], list(there))


@pytest.mark.parametrize("drop", ["no reference", "a cycle", "a cycle, in the middle of an epoch", "close"])
def test_workers_end_at_once_with_their_loader(drop):
    """torch 2.14 alone waits 5 s for each, sends SIGTERM, which ours survive once, and waits 5 s more."""
    loader = AttentionLoader(ProceduralFaces(9, 3, 16), 4, 2, num_workers=2)
    batches = iter(loader)
    for _ in range(2 if "middle" in drop else len(loader) + 1):
        next(batches, None)
    workers = list(loader._loader._iterator._workers)
    assert [worker.exitcode for worker in workers] == [None, None]
    if "cycle" in drop:
        loader.dataset.known = loader, batches
        del loader, batches
        gc.collect()
    elif drop == "close":
        loader.close()
    else:
        del loader, batches
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_its_data_set_knows_is_collected(workers):
    loader = AttentionLoader(ProceduralFaces(9, 3, 16), 4, 2, num_workers=workers)
    loader.dataset.known = loader
    list(loader)
    of_loader, of_faces = weakref.ref(loader), weakref.ref(loader.dataset)
    del loader
    gc.collect()
    assert of_loader() is of_faces() is None


def test_a_program_ends_that_still_holds_its_loader():
    """Python's own finalizers run late where there is one before torch is imported."""
    program = """
import tempfile
folder = tempfile.TemporaryDirectory()
from attfc_cuda.data import AttentionLoader, ProceduralFaces
loader = AttentionLoader(ProceduralFaces(9, 3, 16), 4, 2, num_workers=2)
print(len(list(loader)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "6\n", "")


def test_a_subclass_may_end_an_epoch_sooner():
    class Half(AttentionLoader):
        def __len__(self):
            return super().__len__() // 2

    loader = Half(ProceduralFaces(9, 3, 16), 4, 2)
    assert len(list(loader)) == 3 and loader.state_dict()["pass"] == 1


def test_global_random_state_is_neither_used_nor_changed():
    def run():
        return list(AttentionLoader(NumberedFaces([3] * 10), 6, 1))

    torch.manual_seed(1)
    np.random.seed(1)
    first, torch_state, numpy_state = run(), torch.get_rng_state(), np.random.get_state()[1]
    torch.manual_seed(1)
    assert torch.equal(torch_state, torch.get_rng_state())
    torch.manual_seed(2)
    np.random.seed(2)
    assert _equal(first, run()) and not np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_users_processes_and_the_trainers_get_the_same_images(drop_last, together):
    dataset = NumberedFaces([3] * 22 + [1] * 7)
    given = dict(drop_last=drop_last, probes_per_identity=together)
    alone = AttentionLoader(dataset, 16, 1, **given)
    processes = [AttentionLoader(dataset, 16, 1, rank=rank, world_size=2, **given) for rank in range(2)]
    assert len(alone) == len(processes[0]) == (4 if drop_last else 5)
    for whole, *parts in zip(alone, *processes, strict=True):
        of_rows = [batch.gallery.flatten(0, -4)[batch.gallery_rows] for batch in (whole, *parts)]
        assert torch.equal(of_rows[0], torch.cat(of_rows[1:]))
        for name in ("probe", "labels", "negatives", "negative_labels"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        if together == 1:
            assert torch.equal(whole.gallery, torch.cat([part.gallery for part in parts]))
    assert processes[0].state_dict() == processes[1].state_dict() == alone.state_dict()


def test_a_position_saved_by_three_processes_fits_two():
    dataset = NumberedFaces([3] * 20)
    three, two = (AttentionLoader(dataset, 6, 1, rank=1, world_size=count) for count in (3, 2))
    for _, _batch in zip(range(4), three, strict=False):
        state = three.state_dict()
    two.load_state_dict(state)
    whole = list(AttentionLoader(dataset, 6, 1))
    assert torch.equal(next(iter(two)).probe, whole[4].probe[3:])


def test_workers_are_kept_over_epochs_and_broken_off_loops():
    here, there = (AttentionLoader(NumberedFaces([3] * 20), 8, 1, num_workers=n) for n in (0, 2))
    batches, processes = [[], []], set()
    for epoch in range(3):
        for taken, loader in zip(batches, (here, there), strict=True):
            for batch in loader:
                taken.append(batch)
                if epoch == 1 and len(taken) % 5 == 0:
                    break
        processes.add(tuple(worker.pid for worker in there._loader._iterator._workers))
    assert len(processes) == 1 and len(batches[0]) == 14
    assert _equal(batches[0], batches[1]) and here.state_dict() == there.state_dict()
    there.load_state_dict({**there.state_dict(), "pass": 0, "batch": 2})
    assert _equal(batches[0][2:7], list(there))


def test_other_identities_are_refused_by_name():
    names = [f"p{k}" for k in range(10)]
    labels = np.repeat(np.arange(10), 3)
    state = AttentionLoader(FaceDataset(labels, names, SIZE), 4).state_dict()
    assert unpacked_identities(state["identities"]) == names
    AttentionLoader(FaceDataset(labels, names, SIZE), 4).load_state_dict(state)
    renamed = FaceDataset(labels, [*names[:3], "z_p3", *names[4:]], SIZE)
    with pytest.raises(ValueError, match="be those of the saved state, got 'z_p3' in the place of 'p3'"):
        AttentionLoader(renamed, 4).load_state_dict(state)
    fewer = FaceDataset(labels[:-3], names[:-1], SIZE)
    with pytest.raises(ValueError, match=r"identities must be .*, got 'p9' gone \(9 identities for 10\)"):
        AttentionLoader(fewer, 4).load_state_dict(state)
    with pytest.raises(ValueError, match="identities of a saved state cannot be read"):
        AttentionLoader(renamed, 4).load_state_dict({**state, "identities": "%%%"})


def test_the_order_of_earlier_releases_goes_on(monkeypatch):
    monkeypatch.setattr("attfc_cuda.data.permutation.SMALL", 10)
    old, loader = (AttentionLoader(NumberedFaces([3] * 20), 8, 1) for _ in range(2))
    old.sampler.set_stored_order(True)
    keyed, expected = list(loader), list(old)
    assert not _equal(keyed, expected) and loader.state_dict()["order"] == "keyed"
    state = old.state_dict()
    del state["order"], state["identities"]
    loader.load_state_dict({**state, "pass": 0, "batch": 3})
    assert _equal(expected[3:], list(loader)) and loader.state_dict()["order"] == "stored"
    with pytest.raises(ValueError, match="order must be stored or keyed, got 'random'"):
        loader.load_state_dict({**state, "order": "random"})


@pytest.mark.parametrize("counts", [[3] * 20 + [1] * 6, [3] * 3 + [1] * 60])
@pytest.mark.parametrize("together", [1, 2])
def test_orders_of_both_kinds_resume(counts, together, monkeypatch):
    # Many probes and few negatives, or the other way round: one order is drawn as a whole and the other is not.
    monkeypatch.setattr("attfc_cuda.data.permutation.SMALL", 10)
    loader, resumed = (AttentionLoader(NumberedFaces(counts), 3, 1, probes_per_identity=together) for _ in range(2))
    assert loader.sampler._probes.stored != loader.sampler._negatives.stored
    whole = []
    for batch in loader:
        whole.append(batch)
        if len(whole) == 1:
            state = loader.state_dict()
    resumed.load_state_dict(state)
    assert _equal(whole[1:], list(resumed))


def test_states_of_earlier_releases():
    loader = AttentionLoader(NumberedFaces([3] * 10), 4)
    state = loader.state_dict()
    earlier = {
        name: state[name] for name in state.keys() - {"order", "identities", "probes_per_identity", "gallery_steps"}
    }
    loader.load_state_dict({**earlier, "batch": 2, "world_size": 1})
    assert loader.state_dict() == {**state, "batch": 2}
    with pytest.raises(ValueError, match="world_size must be 1 in a state of an earlier release, got 2; start anew"):
        loader.load_state_dict({**state, "world_size": 2})
    shared = AttentionLoader(NumberedFaces([3] * 10), 4, probes_per_identity=2)
    with pytest.raises(ValueError, match="probes_per_identity must equal the loader's 2, got 1; build the loader as"):
        shared.load_state_dict(earlier)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_unreadable_gallery_image_leaves_out_the_rows_that_share_it(steps):
    dataset = NumberedFaces([6] * 8, broken={1}, on_bad_image="skip")
    loader = AttentionLoader(dataset, 8, 2, probes_per_identity=4 // steps, gallery_steps=steps, augment="none")
    with pytest.warns(UserWarning, match="row ignored: image 1 is broken"):
        batches = list(loader)
    plans = [loader.sampler.plan(0, number, False, with_gallery=True) for number in range(len(batches))]
    left_out = 0
    for batch, plan in zip(batches, plans, strict=True):
        bad = (plan.probe == 1) | (plan.gallery[plan.gallery_rows] == 1).any(axis=1)
        assert torch.equal(batch.labels < 0, torch.from_numpy(bad))
        left_out += bad.sum()
    assert loader.ignored_rows == left_out > 1


def test_unreadable_images_leave_their_rows_out():
    # Identity 0 is 0..3, identity 1 is 4 and 5, and so on; the singles are 14 and 15.
    dataset = NumberedFaces([4, 2, 4, 4, 1, 1], broken={1, 4, 14}, on_bad_image="skip")
    with pytest.warns(UserWarning, match="row ignored: image (1|4|14) is broken"):
        loader = AttentionLoader(dataset, 14, 1)
        batch = next(iter(loader))
    (probe, _), (gallery, _) = _numbers(batch.probe), _numbers(batch.gallery)
    for row, label in enumerate(batch.labels.tolist()):
        if label >= 0:
            assert int(probe[row]) not in dataset.broken and int(gallery[row, 0]) not in dataset.broken
            assert dataset.labels[probe[row]] == label
    assert (batch.labels == 1).sum() == 0  # image 4 is broken, and the gallery of image 5
    assert sorted(batch.negative_labels.tolist()) == [-1, 5]
    assert torch.isfinite(batch.probe).all() and torch.isfinite(batch.gallery).all()
    assert loader.ignored_rows == int((batch.labels < 0).sum()) + 1 > 2
    assert f"rows ignored so far because an image could not be read: {loader.ignored_rows}" in loader.report()

    for workers in (0, 1):
        loader = AttentionLoader(NumberedFaces([4, 2], broken={1}), 6, 1, num_workers=workers)
        with pytest.raises(UnreadableImage, match="^image 1 is broken$"):
            next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_are_gone_stop_the_run(workers):
    dataset = NumberedFaces([3] * 40, broken=range(120), on_bad_image="skip")
    loader = AttentionLoader(dataset, 8, 1, num_workers=workers)
    message = r"none in the last 8; the first reason: image \d+ is broken"
    with warnings.catch_warnings(), pytest.raises(TooManyUnreadable, match=message):
        warnings.simplefilter("ignore")
        next(iter(loader))
    assert loader.state_dict()["batch"] == 0  # a resumed run meets the same batch again


def test_a_share_of_unreadable_images_stops_the_run_and_has_a_setting():
    rows, broken = 400, range(0, 1200, 20)  # one image in twenty: with its gallery every tenth row
    dataset = NumberedFaces([3] * rows, broken=broken, on_bad_image="skip")
    message = (
        r"at most a share of 0.05 unreadable rows, got (\d+) unreadable ones of (\d+); the first .*max_unreadable sets"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TooManyUnreadable, match=message) as caught:
            list(AttentionLoader(dataset, 8, 1))
        bad, seen = map(int, re.search(message, str(caught.value)).groups())
        assert bad >= 20 and bad > 0.05 * seen
        loader = AttentionLoader(dataset, 8, 1, max_unreadable=0.2)
        assert len(list(loader)) == len(loader) and loader.ignored_rows > 60
        few = NumberedFaces([3] * rows, broken=range(0, 1200, 120), on_bad_image="skip")
        assert len(list(AttentionLoader(few, 8, 1))) == len(loader)


def test_corrupt_file_in_a_folder(tmp_path):
    for k in range(4):
        (tmp_path / f"id{k}").mkdir()
        for j in range(3):
            Image.fromarray(np.full((16, 16), 40 * k + 10 * j, np.uint8)).save(tmp_path / f"id{k}" / f"{j}.jpg")
    bad = tmp_path / "id2" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:-60])
    skipping, strict = (AttentionLoader(FolderFaces(tmp_path, 16, on_bad_image=mode), 12, 2, num_workers=workers)
                        for mode, workers in (("skip", 1), ("raise", 0)))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = torch.cat([batch.labels for batch in skipping])
    # Two others each: every row of the identity needs the bad file.
    assert sorted(labels.tolist()) == [-1] * 3 + [0] * 3 + [1] * 3 + [3] * 3 and skipping.ignored_rows == 3
    with pytest.raises(UnreadableImage, match=re.escape(str(bad))):
        next(iter(strict))


def test_report():
    report = AttentionLoader(NumberedFaces([3] * 10 + [1] * 6), 10, 1, world_size=2).report()
    assert "NumberedFaces: 16 identities, 36 images" in report and "with a single image: 6" in report
    assert (
        "30 probe images of 10 identities with at least 2 images; 3 batches of 10 an epoch, each cut over 2 processes"
        in report
    )
    assert "negatives only: 6 images of 6 identities with fewer (each once an epoch, 2.0 a batch)" in report
    report = AttentionLoader(NumberedFaces([3] * 10 + [1] * 6), 5, 1, negatives_per_batch=4).report()
    assert "(4 a batch)" in report and "processes" not in report


@pytest.mark.parametrize(
    ("kwargs", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ({"batch_size": 31}, ValueError, "batch_size must fit into an epoch of 30 probe images, got 31; lower"),
        ({"gallery_size": -1}, ValueError, "gallery_size must lie in 0 to 63, got -1"),
        ({"gallery_size": 64}, ValueError, "gallery_size must lie in 0 to 63, got 64"),
        ({"probes_per_identity": 0}, ValueError, "probes_per_identity must lie in 1 to 64, got 0"),
        ({"probes_per_identity": 65}, ValueError, "probes_per_identity must lie in 1 to 64, got 65"),
        ({"probes_per_identity": 2.0}, TypeError, "probes_per_identity must be an int, got 2.0"),
        ({"gallery_steps": 0}, ValueError, "gallery_steps must lie in 1 to 64, got 0"),
        ({"gallery_steps": 17, "probes_per_identity": 4}, ValueError,
         "gallery_steps must make at most 64 with 4 probes of an identity a step, got 17"),
        ({"seed": -1}, ValueError, "seed must lie in 0 to 18446744073709551615, got -1"),
        ({"min_images": 0}, ValueError, "min_images must be at least 1, got 0"),
        ({"min_images": 4}, ValueError, "dataset must have an identity with at least min_images = 4 images, got at "
                                        "most 3 images for an identity; add images or lower min_images"),
        ({"negatives_per_batch": -1}, ValueError, "negatives_per_batch must be at least 0, got -1"),
        ({"negatives_per_batch": "all"}, ValueError, "negatives_per_batch must be \"auto\" or an int, got 'all'"),
        ({"augment": "cut"}, ValueError, 'augment must be "none" or a list of flip, crop, photometric, gray and'),
        ({"augment": "flip,flip"}, ValueError, "augment must be \"none\" or a list of"),
        ({"augment": "flip,none"}, ValueError, "augment must be \"none\" or a list of"),
        ({"augment": ""}, ValueError, "augment must be \"none\" or a list of"),
        ({"augment": "crop:1.5"}, ValueError, "augment must give probabilities from 0 to 1, got 'crop:1.5'"),
        ({"augment": "crop:1.5.5"}, ValueError, "augment must give probabilities from 0 to 1"),
        ({"world_size": 0}, ValueError, "world_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must lie in 0 to 1, got 2"),
        ({"world_size": 5}, ValueError, "batch_size must hold at least a probe for each of the 5 processes, got 4; it"),
        ({"world_size": 3, "drop_last": False}, ValueError,
         "drop_last must leave a row to each process, got False with 2 rows in the last batch for 3 processes"),
        ({"max_unreadable": 1.5}, ValueError, "max_unreadable must lie in 0 to 1, got 1.5"),
        ({"num_workers": -1}, ValueError, "num_workers must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_bad_arguments(kwargs, kind, message):
    with pytest.raises(kind, match="^AttentionLoader: " + re.escape(message)):
        AttentionLoader(NumberedFaces([3] * 10 + [1] * 3), **{"batch_size": 4, **kwargs})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed must equal the loader's 0, got 1; build the loader as it was when the state was saved"),
        ({"batch_size": 5}, "batch_size must equal the loader's 4, got 5"),
        ({"labels_crc32": 1}, "labels_crc32 must equal the loader's "),
        ({"batch": 7}, "batch must lie in 0 to 6, got 7"),
        ({"pass": -1}, "pass must be at least 0, got -1"),
    ],
)
def test_state_of_another_run_is_refused(change, message):
    loader = AttentionLoader(NumberedFaces([3] * 10), 4)
    with pytest.raises(ValueError, match=re.escape("AttentionLoader.load_state_dict: " + message)):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(ValueError, match="seed must equal the loader's 0, got 'nothing'"):
        loader.load_state_dict({})


def test_labels_must_be_contiguous():
    with pytest.raises(ValueError, match="FaceDataset: labels must cover 0..C-1 with at least one image each, got 3"):
        FaceDataset(np.array([0, 2, 2]), ["a", "b", "c"], 8)


def test_the_old_name_of_on_bad_image(tmp_path):
    (tmp_path / "anna").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "anna" / "0.png")
    with pytest.warns(DeprecationWarning, match=r"FolderFaces\(on_error=...\) is now on_bad_image="):
        faces = FolderFaces(tmp_path, 16, on_error="raise")
    with pytest.warns(DeprecationWarning, match="on_error is now on_bad_image"):
        assert faces.on_error == faces.on_bad_image == "raise"
    with pytest.warns(DeprecationWarning, match="on_error is now on_bad_image"):
        faces.on_error = "skip"
    assert faces.on_bad_image == "skip"
    with pytest.warns(DeprecationWarning, match="Lenient.on_error is now on_bad_image"):

        class Lenient(NumberedFaces):
            on_error = "skip"

    assert Lenient.on_bad_image == "skip"
    with pytest.warns(DeprecationWarning, match=r"build_dataset\(on_error=...\) is now on_bad_image="):
        assert build_dataset(str(tmp_path), 16, on_error="raise").on_bad_image == "raise"

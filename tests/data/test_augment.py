"""Normalisation, mirroring and augmentation of image batches."""

import pytest
import torch

from attfc_cuda.data import AttentionLoader, ProceduralFaces, normalize_images
from attfc_cuda.data.augment import Augmentation, mirror_images


def test_normalize_images_is_the_stated_formula():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    result = normalize_images(pixels)
    assert result.dtype == torch.float32 and result.shape == pixels.shape
    assert torch.equal(result, ((pixels.double() - 127.5) / 127.5).float())
    assert result.min() == -1 and result.max() == 1
    assert pixels.dtype == torch.uint8 and pixels.max() == 255  # the input is left alone


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (torch.zeros(3, 4, 4), TypeError, r"normalize_images: images must be uint8, got torch.float32"),
        (torch.zeros(4, 4, dtype=torch.uint8), ValueError, r"images must have shape \[..., 3, H, W\], got \[4, 4\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ValueError, r"got \[2, 1, 4, 4\]"),
    ],
)
def test_normalize_images_errors(images, kind, message):
    with pytest.raises(kind, match=message):
        normalize_images(images)


def test_mirror_images_only_where_asked():
    images = torch.randint(0, 256, (3, 3, 5, 4), dtype=torch.uint8)
    before = images.clone()
    mirror_images(images, torch.tensor([False, True, False]))
    assert torch.equal(images[1], before[1].flip(-1)) and not torch.equal(images[1], before[1])
    assert torch.equal(images[[0, 2]], before[[0, 2]])


@pytest.fixture(scope="module")
def faces():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    return ProceduralFaces(6, 3, 32, cache=True)


ALL = "flip,crop:0.5,photometric:0.5,gray:0.5,lowres:0.5"


@pytest.mark.parametrize("kind", ["crop", "photometric", "gray", "lowres"])
def test_each_augmentation_changes_what_it_should(faces, kind):
    images = torch.stack([faces[i] for i in range(18)])
    before = images.clone()
    Augmentation(f"{kind}:1", 32).apply(images, range(18))
    changed = (images != before).flatten(1).any(1)
    assert changed.float().mean() > 0.8 and images.dtype == torch.uint8
    Augmentation(f"{kind}:0", 32).apply(before, range(18))
    assert torch.equal(before, torch.stack([faces[i] for i in range(18)]))
    if kind == "photometric":  # no geometry: a black image stays black
        black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        Augmentation("photometric:1", 32).apply(black, [3])
        assert not black.any()
    if kind == "gray":
        assert (images == images[:, :1]).all()
    if kind == "lowres":  # detail is lost: neighbouring pixels differ less
        detail = [(x[..., 1:].float() - x[..., :-1].float()).abs().mean() for x in (images, faces._cache)]
        assert detail[0] < 0.8 * detail[1]


def test_a_probability_is_the_share_of_images(faces):
    images = faces[0].expand(400, -1, -1, -1).clone()
    Augmentation("photometric:0.3", 32).apply(images, range(1000, 1400))
    share = (images != faces[0]).flatten(1).any(1).float().mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5  # four standard deviations


def test_augmentation_depends_on_seed_pass_and_position_alone(faces):
    state = torch.get_rng_state()
    runs = []
    for workers, batch_size in ((0, 4), (2, 4), (0, 8)):
        loader = AttentionLoader(faces, batch_size, 2, seed=5, augment=ALL, num_workers=workers, drop_last=False)
        batches = [batch for _ in range(2) for batch in loader]
        runs.append([torch.cat([batch.probe for batch in batches]), torch.cat([batch.gallery for batch in batches])])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    first, second = runs[0][0].chunk(2)
    plain = AttentionLoader(faces, 4, 2, seed=5, drop_last=False)
    flipped = torch.cat([batch.probe for batch in plain])
    assert not torch.equal(first, second) and 0.5 < (first != flipped).flatten(1).any(1).float().mean() < 1
    seeds = [AttentionLoader(faces, 4, 2, seed=seed, augment=ALL) for seed in (5, 6)]
    assert not torch.equal(*(next(iter(loader)).probe for loader in seeds))


def test_augmentation_resumes_in_the_middle_of_a_pass(faces):
    loader = AttentionLoader(faces, 4, 1, augment=ALL)
    batches = list(loader)
    stopped = AttentionLoader(faces, 4, 1, augment=ALL)
    next(iter(stopped))
    again = AttentionLoader(faces, 4, 1, augment=ALL)
    again.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(batches[1], next(iter(again)), strict=True))
    with pytest.raises(ValueError, match="augment must equal the loader's 'flip'"):
        AttentionLoader(faces, 4, 1).load_state_dict(stopped.state_dict())


def test_negatives_are_augmented_by_their_position():
    pytest.importorskip("torchvision", reason="torchvision is not installed")

    class Mixed(ProceduralFaces):
        def __init__(self):
            super().__init__(8, 2, 32, cache=True)
            keep = [0, 1, 2, 3, 4, 6, 8, 10, 12, 14]  # two identities of two images, six of one
            self._cache = self._cache[keep]
            super(ProceduralFaces, self).__init__(self.labels[keep], self.identities, 32)
            self._cache = ProceduralFaces(8, 2, 32, cache=True)._cache[keep]

    batches = [
        torch.cat([b.negatives for b in AttentionLoader(Mixed(), size, 1, augment="crop:0.5")]) for size in (1, 2, 4)
    ]
    assert len(batches[0]) == 6 and all(torch.equal(batches[0], other) for other in batches[1:])


def test_without_torchvision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    with pytest.raises(ImportError, match="AttentionLoader: augment needs torchvision for more than flip; pip install"):
        Augmentation("flip,crop", 32)
    assert Augmentation("flip", 32).flip

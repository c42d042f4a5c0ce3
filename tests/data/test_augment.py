"""Normalisation and mirroring of image batches."""

import pytest
import torch

from attfc_cuda.data import normalize_images
from attfc_cuda.data.augment import mirror_images


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

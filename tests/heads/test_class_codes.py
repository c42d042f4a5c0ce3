"""Class codes: what they are, and what they add to the centres of a step."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from attfc_cases import BACKENDS, CAPACITY, CLASSES, DIM, step

from attfc_cuda.heads import AttFC
from attfc_cuda.heads.class_codes import class_codes
from attfc_cuda.margins import NormFace


def splitmix64(word: int) -> int:
    """The published finalizer, in Python's unbounded integers."""
    word ^= word >> 30
    word = word * 0xBF58476D1CE4E5B9 % 2**64
    word ^= word >> 27
    word = word * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def test_codes_are_the_signs_of_a_known_hash() -> None:
    labels, dim = [0, 1, 977, 10**12, -3], 24
    expected = [[1 - 2 * (splitmix64((label * dim + k) % 2**64) & 1) for k in range(dim)] for label in labels]
    assert torch.equal(class_codes(torch.tensor(labels), dim), torch.tensor(expected).float() * dim**-0.5)


def test_codes_are_as_good_as_random() -> None:
    codes = class_codes(torch.arange(2000), 512)
    cosines = (codes @ codes.T)[~torch.eye(2000, dtype=torch.bool)]
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2000))
    # 2 million dependent cosines of 2000 codes: mean and spread are known to about 1 / 2000 of the spread.
    assert abs(cosines.mean()) < 5 * 512**-0.5 / 2000 and cosines.std() == pytest.approx(512**-0.5, rel=5 / 2000)
    assert cosines.abs().max() < 6 * 512**-0.5
    assert torch.linalg.matrix_rank(codes) == 512


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_centre_of_a_step_carries_its_code(backend: str) -> None:
    torch.manual_seed(0)
    head = AttFC(DIM, CAPACITY, NormFace(scale=16), num_classes=CLASSES, class_code=2.0, backend=backend, policy="fifo")
    embeddings, gallery, extra = torch.randn(2, DIM), torch.randn(2, 1, DIM), 3 * torch.randn(1, DIM)
    loss, _ = step(head, embeddings, torch.tensor([4, 6]), gallery, extra_centers=extra, extra_labels=torch.tensor([9]))
    unit = F.normalize(torch.cat([extra, gallery[:, 0]]), dim=1)
    expected = F.normalize(unit + 2 * class_codes(torch.tensor([9, 4, 6]), DIM), dim=1)
    torch.testing.assert_close(head.container.centers[:3], expected)
    cosines = 16 * F.normalize(embeddings, dim=1) @ expected.T
    # In the tail of the loss an error of a logit is its relative error; each of two is a sum of DIM rounded products.
    allowed = 2 * 16 * DIM * 2.0**-24
    torch.testing.assert_close(loss, F.cross_entropy(cosines, torch.tensor([1, 2])), rtol=allowed, atol=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"class_code": -1}, "AttFC: class_code must be a finite number of at least 0, got -1"),
        ({"center_memory": 1.0}, "AttFC: center_memory must lie in [0, 1), got 1.0"),
        ({"center_memory": 0.5}, 'AttFC: center_memory must be 0 with policy="fifo", got 0.5; use policy="refresh"'),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AttFC(DIM, CAPACITY, num_classes=CLASSES, preset="published", **{"enqueue": "before", **settings})


def test_classes_keep_their_codes_when_they_are_resized() -> None:
    head = AttFC(DIM, CAPACITY, NormFace(), num_classes=4, class_code=1.0, policy="fifo")
    gallery = torch.randn(4, 1, DIM)
    step(head, torch.randn(4, DIM), torch.arange(4), gallery)
    before = head.container.centers[:4].clone()
    head.resize_classes(torch.tensor([2, -1, 0, -1, 3]))  # new 0, 2, 4 are old 2, 0, 3; old 1 is gone
    step(head, torch.randn(3, DIM), torch.tensor([2, 0, 4]), gallery[[0, 2, 3]])
    torch.testing.assert_close(head.container.centers[4:7], before[[0, 2, 3]])
    assert head.code_of_class.tolist() == [2, 4, 0, 5, 3]
    head.resize_classes(torch.tensor([1, -1]))
    assert head.code_of_class.tolist() == [4, 6]
    assert "code_of_class" in head.state_dict()


def test_codes_take_no_memory_until_classes_are_resized() -> None:
    head = AttFC(DIM, CAPACITY, num_classes=4, class_code=1.0, preset="published", enqueue="before")
    assert head.code_of_class is None and not [name for name in head.state_dict() if "code" in name]
    head.resize_classes(torch.tensor([0, 1, 2, 3, -1]))  # all stay, one is new, and codes are still the numbers
    assert head.code_of_class is None
    head.resize_classes(torch.tensor([1, 0, 2]))
    assert head.code_of_class.tolist() == [1, 0, 2]
    head.reset_parameters()
    assert head.code_of_class is None


def test_codes_come_back_with_a_state() -> None:
    resized, plain = (
        AttFC(DIM, CAPACITY, num_classes=4, class_code=1.0, preset="published", enqueue="before") for _ in range(2)
    )
    resized.resize_classes(torch.tensor([3, 1, -1, 0]))
    codes = [3, 1, 4, 0]
    for other in (
        AttFC(DIM, CAPACITY, num_classes=4, class_code=1.0, preset="published", enqueue="before"),
        resized,
    ):  # without codes, and with
        other.load_state_dict(plain.state_dict())
        assert other.code_of_class is None
    resized.resize_classes(torch.tensor([3, 1, -1, 0]))
    plain.load_state_dict(resized.state_dict())
    assert plain.code_of_class.tolist() == codes
    plain.load_state_dict({}, strict=False)  # says nothing about them
    assert plain.code_of_class.tolist() == codes
    assert plain.code_of_class.data_ptr() != resized.code_of_class.data_ptr()
    empty = AttFC(DIM, CAPACITY, num_classes=4, class_code=1.0, device="meta", preset="published", enqueue="before")
    empty.load_state_dict(resized.state_dict(), assign=True)
    assert empty.code_of_class.tolist() == codes
    emptied = copy.deepcopy(plain).to("meta").to_empty(device="cpu")
    assert emptied.code_of_class is None


def test_a_state_of_an_earlier_release_has_numbers_for_codes() -> None:
    head = AttFC(DIM, CAPACITY, num_classes=4, class_code=1.0, preset="published", enqueue="before")
    older = {**head.state_dict(), "code_of_class": torch.arange(4)}
    head.load_state_dict(older)
    assert head.code_of_class is None and list(older)[-1] == "code_of_class"
    with pytest.raises(RuntimeError, match="size mismatch for code_of_class"):
        head.load_state_dict({**older, "code_of_class": torch.arange(5)})
    without = AttFC(DIM, CAPACITY, num_classes=4, preset="published", enqueue="before")
    with pytest.raises(RuntimeError, match="Unexpected key.*code_of_class"):
        without.load_state_dict(older)

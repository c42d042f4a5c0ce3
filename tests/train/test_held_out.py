"""Identities that are kept from training: which, how many, and that nothing of theirs is trained on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import ListFaces, UnreadableImage, build_dataset, held_out
from attfc_cuda.data.held_out import hold_out
from attfc_cuda.evaluation.build import from_dataset
from attfc_cuda.evaluation.sets import IdentitySet, VerificationSet
from attfc_cuda.train import TrainConfig, train
from attfc_cuda.train.objective import AttFCObjective
from attfc_cuda.train.training import Training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 identities: 0 and 1 with one image, the others with three, each image of one colour of its own."""
    for identity in range(30):
        (tmp_path / "faces" / f"id{identity}").mkdir(parents=True)
        for image in range(1 if identity < 2 else 3):
            colour = (8 * identity, 80 * image, 7)
            Image.new("RGB", (16, 16), colour).save(tmp_path / "faces" / f"id{identity}" / f"{image}.png")
    return tmp_path / "faces"


def test_identities_are_parted_and_keep_their_images(folder: Path) -> None:
    faces = build_dataset(str(folder), 16)
    training, held = hold_out(faces, 0.25)
    assert sorted([*training.identities, *held.identities]) == sorted(faces.identities)
    assert len(held.identities) == 7 and not {"id0", "id1"} & set(held.identities)  # a quarter of 28
    for part in (training, held):
        for index, label in enumerate(part.labels.tolist()):
            assert part[index][0, 0, 0] == 8 * int(part.identities[label].removeprefix("id"))
        assert part.on_bad_image == "skip" and len(part) == len(part.labels)
    assert len(training) + len(held) == len(faces)
    assert f"of these are trained on: 23 identities, {len(training)} images" in training.report()


def test_the_choice_is_that_of_names_not_of_order(folder: Path, tmp_path: Path) -> None:
    chosen = set(hold_out(build_dataset(str(folder), 16), 0.25)[1].identities)
    (folder / "a new one").mkdir()
    for image in range(2):
        Image.new("RGB", (16, 16)).save(folder / "a new one" / f"{image}.png")
    assert len(chosen - set(hold_out(build_dataset(str(folder), 16), 0.25)[1].identities)) <= 1
    lines = [f"faces/id{k}/{image}.png {900 - k}\n" for k in range(2, 30) for image in range(3)]
    (tmp_path / "list.txt").write_text("".join(lines))
    one, other = (hold_out(ListFaces(tmp_path / "list.txt", 16), 0.25)[1] for _ in range(2))
    assert list(one.identities) == list(other.identities) and set(one.identities) <= {str(900 - k) for k in range(30)}


def test_few_identities_are_all_trained_on_and_many_images_are_capped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = build_dataset(str(folder), 16)
    assert hold_out(faces, 0.0) == (faces, None)
    assert len(hold_out(faces, 0.01)[1].identities) == held_out.FEWEST_HELD_OUT
    monkeypatch.setattr(held_out, "MOST_IMAGES", 17)
    assert len(hold_out(faces, 0.9)[1].identities) == 5  # of three images each
    monkeypatch.setattr(held_out, "FEWEST_IDENTITIES", 29)  # 28 have two images
    assert hold_out(faces, 0.5) == (faces, None)


def test_drawn_pairs_leave_out_what_cannot_be_read(folder: Path, tiny_config: Callable[..., TrainConfig]) -> None:
    """A damaged image among the held-out ones costs its pairs and not the run."""
    config = tiny_config(data=str(folder), verify_num_pairs=40, hold_out=0.3, cache="off")
    whole = Training(config, AttFCObjective).sets[0]
    held = hold_out(build_dataset(str(folder), 16), 0.3)[1]
    damaged = held.identities[0]
    (folder / damaged / "1.png").write_bytes(b"no image")
    words = rf"verify: held-out: \d+ pairs with an image that cannot be decoded are left out, .*{damaged}/1.png"
    with pytest.warns(UserWarning, match=words):
        (found,) = Training(config, AttFCObjective).sets

    def colour(data: VerificationSet, image: int) -> tuple:
        return tuple(data.images[image][:, 0, 0].tolist())

    def pairs(data: VerificationSet) -> list:
        columns = zip(data.pairs.a.tolist(), data.pairs.b.tolist(), data.pairs.same.tolist(), strict=True)
        return [(colour(data, a), colour(data, b), int(data.identity[a]), same) for a, b, same in columns]

    gone = (8 * int(damaged.removeprefix("id")), 80, 7)
    expected = [pair for pair in pairs(whole) if gone not in pair]
    assert pairs(found) == expected and 0 < len(expected) < len(pairs(whole))
    assert len(found.names) == len(found.images) == len(whole.images) - 1
    strict = build_dataset(str(folder), 16, on_bad_image="raise")
    with pytest.raises(UnreadableImage, match=f"{damaged}/1.png"):
        from_dataset("held-out", strict, 2000)


def test_a_run_on_a_folder_verifies_without_a_flag(folder: Path, tiny_config: Callable[..., TrainConfig]) -> None:
    run = Training(tiny_config(data=str(folder), verify_num_pairs=None), AttFCObjective)
    (held,) = run.sets
    assert isinstance(held, IdentitySet) and held.num_pairs == 66 and len(np.unique(held.identity)) == 4
    assert len(run.dataset.identities) == 26 == run.objective.head.container.num_classes
    seen = torch.stack([run.dataset[k][:, 0, 0] for k in range(len(run.dataset))])
    for index in range(12):
        assert not (seen == held.images[index][:, 0, 0]).all(1).any()
    assert "held-out (66 pairs)" in run.report()


def test_all_are_trained_on_where_something_else_is_verified_on(
    folder: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    for settings in ({"hold_out": 0.0}, {"verify_data": str(folder)}):
        run = Training(tiny_config(data=str(folder), **settings), AttFCObjective)
        assert len(run.dataset.identities) == 30 and len(run.sets) == len(settings.get("verify_data", [])[:1])


def test_a_file_of_an_earlier_release_holds_nothing_out() -> None:
    plain = TrainConfig().to_dict()
    assert plain["verify"].pop("hold_out") > 0
    assert TrainConfig.from_dict(plain).verify.hold_out == 0
    assert TrainConfig.from_dict({"verify": {"verify_every": 3}}).verify.hold_out == TrainConfig().verify.hold_out


def test_a_run_that_goes_on_holds_out_what_it_did(folder: Path, tiny_config: Callable[..., TrainConfig]) -> None:
    given = {"data": str(folder), "verify_num_pairs": None}
    train(tiny_config("held", steps=1, **given))
    with pytest.raises(ValueError, match="resume: verify_data must be left out, as it was in the checkpoint's run"):
        train(tiny_config("held", steps=2, resume=True, verify_data="procedural:4x2", **given))
    train(tiny_config("given", steps=1, verify_data="procedural:4x2", **given))
    with pytest.raises(ValueError, match="resume: verify_data must be given, as it was in the checkpoint's run"):
        train(tiny_config("given", steps=2, resume=True, **given))

"""Resuming on other data: refused with the first identity that differs, or carried by name."""

from __future__ import annotations

import base64
import re
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data.identities import packed_identities, unpacked_identities
from attfc_cuda.train import TrainConfig, checkpoint, train
from attfc_cuda.train.data_identity import DataIdentity
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import OBJECTIVES
from attfc_cuda.train.training import Training

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Eight identities with three images, each of a gray of its own."""
    for k in range(8):
        (tmp_path / "faces" / f"p{k:03d}").mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(10 * k + i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / f"p{k:03d}" / f"{i}.png")
    return tmp_path / "faces"


def test_the_first_difference_is_named() -> None:
    then = DataIdentity(["a", "b", "c"], np.array([2, 2, 3]))
    assert DataIdentity(["a", "b", "c"], np.array([2, 2, 3])).difference(then) is None
    for names, counts, words in (
        (["b", "c", "z"], [2, 3, 2], "'b' in the place of 'a' (label 0)"),
        (["a", "b"], [2, 2], "'c' gone (2 identities for 3)"),
        (["a", "b", "c", "d"], [2, 2, 3, 1], "'d' added (4 identities for 3)"),
        (["a", "b", "c"], [2, 4, 3], "4 images of 'b' for 2"),
    ):
        now = DataIdentity(names, np.array(counts))
        assert now.difference(then) == words
        assert now.digest() != then.digest()


def test_it_survives_a_checkpoint_and_maps_by_name_and_occurrence() -> None:
    then = DataIdentity(["a", "b", "a", "\udcff"], np.array([2, 2, 3, 1]))
    state = {"data": then.state_dict(), "loader": {"identities": packed_identities(then.names)}}
    again = DataIdentity.from_checkpoint(state)
    assert again.names == then.names and again.counts.tolist() == [2, 2, 3, 1]
    assert DataIdentity.from_checkpoint({"loader": {}}) is None
    now = DataIdentity(["new", "a", "b", "a", "a"], np.ones(5))
    assert now.mapping(then).tolist() == [-1, 0, 1, 2, -1]


@pytest.mark.parametrize(
    "names, counts",
    [
        ([""] * 2**21, np.ones(3)),  # a kilobyte that would be millions of names
        (["a" * 2**28], np.ones(1)),
        (["a", "b"], np.ones(2**21)),
        (["a", "b"], np.ones(1)),
        (["a", "b"], -np.ones(2)),
    ],
    ids=["names", "a name", "counts", "fewer counts", "negative"],
)
def test_what_unpacks_to_more_than_it_should_is_refused(names: list[str], counts: np.ndarray) -> None:
    packed = base64.b85encode(zlib.compress("\0".join(names).encode(), 9)).decode()
    state = {"data": DataIdentity([], counts).state_dict(), "loader": {"identities": packed}}
    tracemalloc.start()
    with pytest.raises(ValueError, match="cannot be read|unpack to more than"):
        DataIdentity.from_checkpoint(state)
    assert tracemalloc.get_traced_memory()[1] < 2**20 + 4 * 256 * len(packed)
    tracemalloc.stop()


def test_many_names_that_are_alike_are_read() -> None:
    for names in ([f"a/very/long/folder/of/people/person_{k:09d}" for k in range(300_000)], ["same"] * 3000):
        assert unpacked_identities(packed_identities(names)) == names


@pytest.mark.parametrize("head", ["attfc", "fc", "partial_fc"])
def test_a_renamed_identity_is_refused_and_carried_on_request(tiny_config: Tiny, faces: Path, head: str) -> None:
    settings = {"data": str(faces), "head": head, "batch_size": 6, "verify_every": 0, "keep": 9}
    train(tiny_config(steps=4, **settings))
    (faces / "p000").rename(faces / "z_p000")
    shutil.rmtree(faces / "p003")
    words = re.escape(
        "resume: data must hold the checkpoint's identities and images, got 'p001' in the place of 'p000'"
    )
    with pytest.raises(ValueError, match=words + r".*--carry-classes"):
        train(tiny_config(steps=8, resume=True, **settings))

    config = tiny_config(steps=8, resume=True, carry_classes=True, **settings)
    state = checkpoint.load_newest(config.run.run / "checkpoints")["objective"]
    training = Training(config, OBJECTIVES[head])
    said: list[str] = []
    training.resume(said.append)
    assert len(said) == 1 and "kept 6 of 8 identities, 1 are new" in said[0]
    names = training.dataset.identities
    assert names == ["p001", "p002", "p004", "p005", "p006", "p007", "z_p000"]
    old_of = {label: int(name[1:]) for label, name in enumerate(names) if name != "z_p000"}
    if head != "attfc":
        for label, old in old_of.items():
            assert torch.equal(training.objective.head.centers[label], state["head.centers"][old])
    else:
        labels, then = training.objective.head.container.labels, state["head.container.labels"]
        moved = {int(was): int(now) for was, now in zip(then, labels, strict=True)}
        assert {was: moved[was] for was in moved if was in old_of.values()} == {
            old: label for label, old in old_of.items() if old in moved
        }
        assert all(moved[gone] == -1 for gone in (0, 3) if gone in moved)
    assert train(config).step == 8


def test_moved_data_resume_without_a_word(tiny_config: Tiny, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_config(steps=2, data=str(faces), batch_size=6))
    faces.rename(faces.parent / "elsewhere")
    monkeypatch.chdir(faces.parent)
    config = tiny_config(steps=4, data="elsewhere", batch_size=6, resume=True)
    assert train(config).step == 4
    assert not [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"precision": "bf16", "workers": 1}, {"weight_decay": 0.25}])
def test_settings_that_may_change_take_effect(tiny_config: Tiny, change: dict) -> None:
    train(tiny_config(steps=2))
    config = tiny_config(steps=3, resume=True, **change)
    training = Training(config, OBJECTIVES["attfc"])
    training.resume()
    decays = {group["weight_decay"] for group in training.optimizer.param_groups}
    assert decays == {change.get("weight_decay", TrainConfig().optim.weight_decay), 0.0}
    assert train(config).step == 3


def test_another_number_of_threads_is_said(tiny_config: Tiny) -> None:
    train(tiny_config(steps=1, threads=1))
    config = tiny_config(steps=2, threads=2, resume=True)
    train(config)
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert len(notes) == 1 and "on 1 CPU threads and is on 2 now" in notes[0] and "--threads 1" in notes[0]

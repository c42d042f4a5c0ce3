"""The config: through JSON and back, its own checks, and a documented flag for every field."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import typing
from pathlib import Path

import pytest

from attfc_cuda.train import TrainConfig
from attfc_cuda.train.config import HOW_A_RUN_STARTS, RANGES, HeadConfig, OptimizerConfig, parse_options


def fields_of_all_groups() -> list[tuple[str, str]]:
    groups = dataclasses.fields(TrainConfig)
    return [(group.name, field.name) for group in groups for field in dataclasses.fields(group.default_factory)]


def test_round_trip_through_json_keeps_every_changed_field(tmp_path: Path) -> None:
    config = TrainConfig()
    config.dataset.negatives_per_batch, config.head.capacity, config.optim.clip_norm = 7, 99, None
    config.verify.verify_root, config.run.run, config.head.split_gallery = Path("a/b"), Path("c"), True
    config.save(tmp_path / "config.json")
    config.head.margin = "adasin"  # the usual one, by its name
    assert TrainConfig.load(tmp_path / "config.json") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_how_a_run_starts_is_not_saved() -> None:
    config = TrainConfig()
    config.run.resume, config.run.overwrite, config.run.config = True, True, Path("x.json")
    assert TrainConfig.from_dict(config.to_dict()) == TrainConfig(head=HeadConfig(margin="adasin"))


def test_field_names_are_unique_across_groups() -> None:
    names = [name for _, name in fields_of_all_groups()]
    assert len(set(names)) == len(names)


def test_a_preset_sets_what_it_stands_for_however_it_is_given() -> None:
    def values(head: HeadConfig) -> tuple:
        return head.scale, head.m, head.policy, head.enqueue, head.class_code

    config, published = TrainConfig(), (64.0, None, "fifo", "after", 0.0)
    config.head.preset = "published"
    assert values(config.head) == published
    config.head.scale = 32.0  # what is set after it counts
    assert values(config.head) == (32.0, *published[1:])
    assert values(pickle.loads(pickle.dumps(config)).head) == values(copy.deepcopy(config).head) == values(config.head)
    assert vars(copy.deepcopy(config.head)) == vars(config.head)
    assert values(dataclasses.replace(config.head, m=0.5)) == (32.0, 0.5, *published[2:])
    config.head.preset = "default"
    assert values(config.head) == values(HeadConfig()) == (24.0, 0.2, "refresh", "before", 1.0)
    assert values(HeadConfig(preset="published")) == published
    assert values(HeadConfig(preset="published", scale=24.0)) == (24.0, *published[1:])
    in_order = ("published", "attfc", 0.1, True, "adasin", "", 0.3, 24.0)
    assert values(HeadConfig(*in_order)) == (24.0, 0.3, *published[2:])
    assert values(TrainConfig.from_dict({"head": {"preset": "published", "m": 0.3}}).head) == (
        64.0,
        0.3,
        *published[2:],
    )
    with pytest.raises(ValueError, match="preset must be one of default, published, got 'publishd'"):
        config.head.preset = "publishd"
    assert config == TrainConfig()


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"datasets": {}}, r"config must name known settings \(group: dataset, .*\), got 'datasets'"),
        ({"dataset": {"dat": "x"}}, r"config must name known settings \(setting of dataset: data, .*\), got 'dat'"),
        ({"dataset": 3}, r"config must hold a JSON object for each setting of dataset, got 3"),
        ({"dataset": {"batch_size": "8"}}, r"config dataset.batch_size must be int, got '8'"),
        ({"dataset": {"batch_size": True}}, r"config dataset.batch_size must be int, got True"),
        ({"head": {"policy": "lru"}}, r"config head.policy must be .*'fifo', 'refresh'.*, got 'lru'"),
        ({"head": {"split_gallery": 1}}, r"config head.split_gallery must be bool, got 1"),
        ({"optim": {"clip_norm": "no"}}, r"config optim.clip_norm must be float or NoneType, got 'no'"),
    ],
)
def test_wrong_json_is_named(plain: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(plain)


def test_an_int_is_a_float_but_not_the_other_way_round() -> None:
    assert TrainConfig.from_dict({"optim": {"epochs": 3}}).optim.epochs == 3.0
    with pytest.raises(ValueError, match="config dataset.batch_size must be int, got 8.0"):
        TrainConfig.from_dict({"dataset": {"batch_size": 8.0}})


def test_the_old_name_of_epochs_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="config optim.passes is now epochs"):
        config = TrainConfig.from_dict({"optim": {"passes": 3}})
    assert config.optim.epochs == 3.0 and "passes" not in config.to_dict()["optim"]
    with pytest.warns(DeprecationWarning, match="OptimizerConfig.passes is now epochs"):
        config.optim.passes = 5.0
    with pytest.warns(DeprecationWarning, match="OptimizerConfig.passes is now epochs"):
        assert config.optim.passes == config.optim.epochs == 5.0
    with pytest.warns(DeprecationWarning):
        assert OptimizerConfig(passes=7.0) == OptimizerConfig(epochs=7.0)


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(ValueError, match=rf"train: config must be a readable JSON file, got .*{name}"):
            TrainConfig.load(tmp_path / name)


@pytest.mark.parametrize(
    ("group", "name", "value", "rule"),
    [
        ("dataset", "batch_size", 0, "be at least 1"),
        ("dataset", "gallery_size", 0, r"lie in \[1, 63\]"),
        ("dataset", "probes_per_identity", 65, r"lie in \[1, 64\]"),
        ("dataset", "image_size", 8, "be at least 16"),
        ("dataset", "workers", -1, "be at least 0"),
        ("model", "embedding_dim", 0, "be at least 1"),
        ("head", "capacity", 0, "be at least 1"),
        ("head", "capacity_share", 0.0, r"lie in \(0, 100\]"),
        ("head", "encoder_momentum", 1.0, r"lie in \[0, 1\)"),
        ("head", "encoder_warmup", 1.5, r"lie in \[0, 1\]"),
        ("optim", "epochs", 0.0, "be above 0"),
        ("optim", "steps", 0, "be at least 1"),
        ("optim", "lr", 0.0, "be above 0"),
        ("optim", "warmup", 1.0, r"lie in \[0, 1\)"),
        ("optim", "final_lr", -0.1, r"lie in \[0, 1\]"),
        ("optim", "weight_decay", -1.0, "be at least 0"),
        ("optim", "clip_norm", 0.0, "be above 0"),
        ("verify", "verify_num_pairs", 3, "be at least 4"),
        ("verify", "verify_every", -1, "be at least 0"),
        ("optim", "sgd_momentum", 2.0, r"lie in \[0, 1\)"),
        ("optim", "lr", float("inf"), "be a finite number"),
        ("head", "scale", float("nan"), "be a finite number"),
        ("dataset", "gallery_size", 64, r"lie in \[1, 63\]"),
        ("run", "log_every", 0, "be at least 1"),
        ("run", "keep", 0, "be at least 1"),
        ("run", "threads", 0, "be at least 1"),
    ],
)
def test_each_range_is_checked(group: str, name: str, value: float, rule: str) -> None:
    config = TrainConfig()
    config.check()
    setattr(getattr(config, group), name, value)
    with pytest.raises(ValueError, match=rf"^train: {name} must {rule}, got {value}$"):
        config.check()


def numbers_of_all_groups() -> list[tuple[str, str, bool]]:
    """Group, name and whether a fraction makes sense, of every field that is a number."""
    found = []
    for group in dataclasses.fields(TrainConfig):
        hints = typing.get_type_hints(group.default_factory)
        for field in dataclasses.fields(group.default_factory):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if kinds & {int, float}:
                found.append((group.name, field.name, float in kinds))
    return found


@pytest.mark.parametrize(("group", "name", "fraction"), numbers_of_all_groups())
def test_every_number_has_a_range_and_keeps_to_it(group: str, name: str, fraction: bool) -> None:
    config, range_ = TrainConfig(), RANGES[name]
    bad = [range_.low if range_.open_low else range_.low - 1]
    bad += [] if range_.high is None else [range_.high if range_.open_high else range_.high + 1]
    bad += [math.nan, math.inf] if fraction else []
    for value in bad:
        setattr(getattr(config, group), name, value)
        with pytest.raises(ValueError, match=f"^train: {name} must "):
            config.check()


def test_options_are_python_literals_or_words() -> None:
    text = "m=0.4, detach_difficulty=False,difficulty=angle"
    assert parse_options(text, "margin_options") == {"m": 0.4, "detach_difficulty": False, "difficulty": "angle"}
    assert parse_options("", "margin_options") == {}
    for bad in ("m", "m=", "=3"):
        with pytest.raises(ValueError, match="train: margin_options must be name=value pairs separated by commas"):
            parse_options(bad, "margin_options")


def test_saved_config_is_plain_json(tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "c.json")
    saved = json.loads((tmp_path / "c.json").read_text())
    known = {(group, name) for group, name in fields_of_all_groups()}
    assert {(g, n) for g, values in saved.items() for n in values} == known - {
        ("run", name) for name in HOW_A_RUN_STARTS
    }

"""The heads and the trainer start with one set of values; that of the papers has a name in both."""

from pathlib import Path

import pytest

from attfc_cuda import AdaSin, ArcFace, AttFC, FullyConnected, PartialFC, cli
from attfc_cuda.margins import CosFace, Margin
from attfc_cuda.train import TrainConfig
from attfc_cuda.train.objective import build_margin


def margin_values(margin: Margin) -> dict:
    return {name: value for name, value in vars(margin).items() if not name.startswith("_") and name != "training"}


def values(head: AttFC) -> dict:
    own = {name: getattr(head, name) for name in ("enqueue", "class_code", "temperature", "center_memory")}
    return {**own, "policy": head.container.policy, "margin": (type(head.margin), margin_values(head.margin))}


def trained(config: TrainConfig) -> dict:
    """What `values` would be of the head that `attfc train` builds."""
    options, margin = config.head, build_margin(config)
    own = {name: getattr(options, name) for name in ("enqueue", "class_code", "temperature", "center_memory", "policy")}
    return {**own, "margin": (type(margin), margin_values(margin))}


@pytest.mark.parametrize("preset", ["default", "published"])
def test_the_head_starts_as_the_trainer_does(preset: str) -> None:
    config = TrainConfig.from_dict({"head": {"preset": preset}})
    assert values(AttFC(8, 16, num_classes=5, preset=preset)) == trained(config)
    if preset == "default":
        assert values(AttFC(8, 16, num_classes=5)) == trained(TrainConfig())


@pytest.mark.parametrize("kind", ["fc", "partial_fc"])
def test_trained_centers_start_with_arcface(kind: str) -> None:
    head = {"fc": FullyConnected, "partial_fc": PartialFC}[kind](8, 5)
    margin = build_margin(settings("--head", kind))
    assert type(head.margin) is type(margin) is ArcFace and margin_values(head.margin) == margin_values(margin)
    assert type(build_margin(settings("--head", kind, "--margin", "adasin"))) is AdaSin
    assert type(build_margin(settings("--head", "attfc"))) is AdaSin
    saved = TrainConfig().to_dict() | {"head": TrainConfig().to_dict()["head"] | {"head": kind, "margin": "adasin"}}
    assert type(build_margin(TrainConfig.from_dict(saved))) is AdaSin  # as runs wrote it before there was a None


def test_published_is_what_the_papers_print() -> None:
    head = AttFC(8, 16, preset="published")
    assert (head.enqueue, head.class_code, head.container.policy) == ("after", 0, "fifo")
    assert (type(head.margin), head.margin.scale, head.margin.m) == (AdaSin, 64, 0.5)
    config = TrainConfig.from_dict({"head": {"preset": "published", "margin": "cosface"}})
    assert margin_values(build_margin(config)) == margin_values(CosFace())  # its own 0.35


def test_arguments_count_more_than_the_preset() -> None:
    head = AttFC(8, 16, CosFace(m=0.1), "refresh", "before", 5, class_code=0.5, preset="published")
    assert (head.enqueue, head.class_code, head.container.policy, head.margin.m) == ("before", 0.5, "refresh", 0.1)
    with pytest.raises(
        ValueError, match=r"AttFC: preset must be one of default, published, got 'publish'; .*published"
    ):
        AttFC(8, 16, preset="publish")


def settings(*flags: str) -> TrainConfig:
    return cli.parse(["train", *flags])[1]


def test_the_trainers_flag_is_overridden_by_flags_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = settings("--preset", "published", "--policy", "refresh").head
    assert (head.scale, head.m, head.enqueue, head.class_code, head.policy) == (64, None, "after", 0, "refresh")
    file = tmp_path / "config.json"
    file.write_text('{"head": {"preset": "published", "scale": 48}}')
    head = settings("--config", str(file), "--m", "0.3").head
    assert (head.scale, head.m, head.enqueue) == (48, 0.3, "after")
    assert TrainConfig.from_dict(settings("--config", str(file)).to_dict()).head.m is None  # through JSON and back
    assert cli.main(["train", "--config", str(file), "--preset", "default"]) == 2
    assert "preset must start a run without a file of settings" in capsys.readouterr().err
    file.write_text('{"head": {"preset": "publishd"}}')
    with pytest.raises(ValueError, match="train: preset must be one of default, published, got 'publishd'"):
        TrainConfig.load(file)


def test_a_file_of_an_earlier_release_keeps_its_margin() -> None:
    plain = TrainConfig().to_dict()
    del plain["head"]["m"], plain["head"]["preset"]
    assert build_margin(TrainConfig.from_dict(plain)).m == 0.2
    plain["head"]["margin_options"] = "m=0.4"
    assert build_margin(TrainConfig.from_dict(plain)).m == 0.4

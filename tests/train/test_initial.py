"""Fine-tuning: weights from any file that holds them, frozen parameters, learning rates by layer."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from attfc_cuda import backbones, cli, export
from attfc_cuda.train import load_backbone
from attfc_cuda.train.config import OptimizerConfig
from attfc_cuda.train.initial import freeze, rate_factors
from attfc_cuda.train.objective import AttFCObjective
from attfc_cuda.train.optimizer import build_optimizer, set_rate
from attfc_cuda.train.training import Training

TINY = [
    "--data", "procedural:8x3", "--steps", "2", "--verify-num-pairs", "20", "--no-tensorboard", "--image-size", "16",
    "--batch-size", "4", "--embedding-dim", "16", "--device", "cpu", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return backbones.build("small", embedding_dim=16, image_size=16)


def started(tiny_config, path: Path, **settings) -> Training:
    return Training(tiny_config(init=path, embedding_dim=settings.pop("embedding_dim", 16), **settings), AttFCObjective)


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "features.module.", "module.features.module.", "backbone.", "model."]
)
@pytest.mark.parametrize("holder", [None, "state_dict", "state_dict_backbone"])
def test_layouts_of_others_start_the_same_network(tiny_config, network, tmp_path, prefix, holder) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    if prefix not in ("", "module."):
        state["head.kernel"] = torch.zeros(16, 3)
    torch.save({holder: state, "epoch": 3} if holder else state, tmp_path / "other.pt")
    training = started(tiny_config, tmp_path / "other.pt")
    assert same(training.backbone, network)
    assert same(training.objective.encoder.module, network)  # the gallery encoder starts from the same weights
    report = training.report()
    assert f"tensors of {tmp_path / 'other.pt'}" in report and ("head.kernel" in report) == ("head.kernel" in state)


def test_a_run_and_safetensors_start_the_same_network(tiny_config, tmp_path) -> None:
    assert cli.main(["train", *TINY, "--run", str(tmp_path / "first")]) == 0
    trained = load_backbone(tmp_path / "first")[0]
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    export.to_safetensors(trained, tmp_path / "net.safetensors", "small")
    file = tmp_path / "first" / "checkpoints" / "step_00000002.pt"
    for path in (tmp_path / "first", file, tmp_path / "net.safetensors"):
        assert same(started(tiny_config, path).backbone, trained), path


def test_a_run_that_goes_on_does_not_start_again(network, tmp_path, capsys) -> None:
    torch.save(network.state_dict(), tmp_path / "net.pt")
    run = ["train", *TINY, "--run", str(tmp_path / "run"), "--init", str(tmp_path / "net.pt"), "--freeze", "stem.*"]
    assert cli.main([*run, "--backbone-lr-factor", "0.1", "--layer-lr-decay", "0.9"]) == 0
    assert "initial  " in capsys.readouterr().out
    before, after = network.state_dict(), load_backbone(tmp_path / "run")[0].state_dict()
    stem = [name for name in before if name.startswith("stem.") and "num_batches" not in name]
    assert stem and all(torch.equal(before[name], after[name]) for name in stem)  # its running statistics too
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("blocks."))
    (tmp_path / "net.pt").unlink()
    assert cli.main(["train", "--run", str(tmp_path / "run"), "--resume", "--steps", "3"]) == 0
    assert cli.main(["train", "--run", str(tmp_path / "run"), "--resume", "--steps", "4", "--freeze", ""]) == 2
    assert "resume: freeze must equal the checkpoint's 'stem.*'" in capsys.readouterr().err


def test_another_embedding_size_takes_a_clear_word(tiny_config, network, tmp_path) -> None:
    torch.save(network.state_dict(), tmp_path / "net.pt")
    message = (
        r"train: embedding_dim must be that of .*net.pt, 16, got 24; --embedding-dim 16, or --new-embedding to .*fc"
    )
    with pytest.raises(ValueError, match=message):
        started(tiny_config, tmp_path / "net.pt", embedding_dim=24)
    training = started(tiny_config, tmp_path / "net.pt", embedding_dim=24, new_embedding=True)
    assert torch.equal(training.backbone.state_dict()["stem.0.weight"], network.state_dict()["stem.0.weight"])
    assert training.backbone(torch.zeros(2, 3, 16, 16)).shape == (2, 24)
    assert "started anew: " in training.report() and "fc.weight" in training.report()


def test_what_does_not_fit_is_named(tiny_config, network, tmp_path) -> None:
    state = dict(network.state_dict())
    weight = state.pop("stem.0.weight")
    torch.save({**state, "stem.9.weight": weight}, tmp_path / "a.pt")
    message = r"train: init must hold the tensors of small, got .*missing stem.0.weight; unexpected stem.9.weight; give"
    with pytest.raises(ValueError, match=message):
        started(tiny_config, tmp_path / "a.pt")
    torch.save({**state, "stem.0.weight": weight[:4]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"init must hold stem.0.weight of shape \[\d+, 3, 3, 3\], got \[4, 3, 3, 3\]"):
        started(tiny_config, tmp_path / "a.pt", new_embedding=True)
    torch.save({**state, "stem.0.weight": weight * float("nan")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"train: init must hold .*NaN or infinite numbers in stem.0.weight"):
        started(tiny_config, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"train: init must exist, got no file .*absent.pt"):
        started(tiny_config, tmp_path / "absent.pt")


def test_a_file_that_would_run_code_is_refused(tiny_config, tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    with pytest.raises(ValueError, match="train: init must be a checkpoint of tensors"):
        started(tiny_config, tmp_path / "evil.pt")


def test_frozen_batchnorm_stays_in_eval_mode_and_keeps_its_numbers() -> None:
    net = backbones.build("iresnet18", embedding_dim=8, image_size=16)
    assert freeze(net, "conv1.*, bn1.*,layer1.*") == sum(
        name.startswith(("conv1.", "bn1.", "layer1.")) for name, _ in net.named_parameters()
    )
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.randn(4, 3, 16, 16)).sum().backward()
    after = net.state_dict()
    for name, value in before.items():
        if name.startswith(("bn1.", "layer1.")):
            assert torch.equal(value, after[name]), name
    assert not torch.equal(before["layer2.0.bn1.running_mean"], after["layer2.0.bn1.running_mean"])
    assert net.conv1.weight.grad is None and net.layer2[0].conv1.weight.grad is not None


@pytest.mark.parametrize(
    ("patterns", "message"),
    [("conv1.*,nothing.*", "freeze must match parameters, such as .*got 'nothing"), ("*", "freeze must leave")],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(patterns, message) -> None:
    with pytest.raises(ValueError, match=f"train: {message}"):
        freeze(backbones.build("iresnet18", embedding_dim=8, image_size=16), patterns)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_learning_rates_fall_layer_by_layer(kind) -> None:
    net = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    head = nn.Linear(2, 3)
    optimizer = build_optimizer(
        OptimizerConfig(optimizer=kind), [net, head], 0.5, factors=rate_factors(net, whole=0.1, layer_decay=0.5)
    )
    set_rate(optimizer, 2.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {net["stem"]: 0.05, net["blocks"][0]: 0.1, net["blocks"][1]: 0.2, head: 2.0}
    for module, rate in expected.items():
        assert [rates[id(p)] for p in module.parameters()] == pytest.approx([rate, rate])
    assert len(rates) == 8


def test_without_factors_the_groups_are_the_usual_two() -> None:
    net = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerConfig(), [net], 0.5, factors=rate_factors(net, 1.0, 1.0))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert all("lr_factor" not in group for group in optimizer.param_groups)

"""Export: what onnxruntime and safetensors read back is the network, and a failed export leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attfc_cuda import backbones, cli, export
from attfc_cuda.backbones.options_from_files import options_from_file
from attfc_cuda.train import TrainConfig, checkpoint, load_backbone, train


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed: no onnxscript")
    return pytest.importorskip("onnxruntime", reason="the extra [export] is not installed: no onnxruntime")


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.torch", reason="the extra [export] is not installed: no safetensors")


def used(name: str, **options: object) -> nn.Module:
    """A network whose normalisation statistics are those of some images, as after training; left in train mode."""
    torch.manual_seed(0)
    backbone = backbones.build(name, embedding_dim=24, image_size=32, **options)
    for _ in range(20):
        backbone(torch.rand(8, 3, 32, 32) * 2 - 1)
    return backbone


def embed(runtime, path: Path, images: torch.Tensor) -> torch.Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("embeddings", ["batch", 24])]
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("name", ["small", "iresnet18"])
def test_onnx_gives_the_embeddings_of_torch_for_any_batch(name: str, onnxruntime, tmp_path: Path) -> None:
    backbone = used(name)
    modes = [module.training for module in backbone.modules()]
    largest = export.to_onnx(backbone, tmp_path / "model.onnx")
    assert largest <= 1e-4
    assert [module.training for module in backbone.modules()] == modes and backbone.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights inside, nothing left beside
    backbone.eval()
    for rows in (0, 1, 2, 5):
        images = torch.rand(rows, 3, 32, 32) * 2 - 1
        got, expected = embed(onnxruntime, tmp_path / "model.onnx", images), backbone(images).detach()
        assert got.shape == (rows, 24)
        torch.testing.assert_close(F.normalize(got), F.normalize(expected), rtol=0, atol=1e-4)
        torch.testing.assert_close(got.norm(dim=1), expected.norm(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_another_dtype_is_exported_in_float32(dtype: torch.dtype, onnxruntime, tmp_path: Path) -> None:
    """onnxruntime 1.32 runs no convolution in bfloat16, and would run one in float16 with inputs of float16 only."""
    backbone = used("small").to(dtype).eval()
    assert export.to_onnx(backbone, tmp_path / "model.onnx") <= 1e-4
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    got, expected = embed(onnxruntime, tmp_path / "model.onnx", images), backbone.float()(images).detach()
    torch.testing.assert_close(F.normalize(got), F.normalize(expected), rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Mended(backbones.SmallResNet):
    """Gives other embeddings while it is exported: the check has to see it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(images)
        return embeddings + embeddings.roll(1, 1) if torch.compiler.is_exporting() else embeddings


def test_a_wrong_export_is_refused_and_the_old_file_stays(onnxruntime, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the one before")
    with pytest.raises(ArithmeticError, match="to_onnx: backbone must agree with torch to 0.0001 .*got "):
        export.to_onnx(Mended(embedding_dim=24, image_size=32), path)
    assert path.read_text() == "the one before" and list(tmp_path.iterdir()) == [path]


def test_safetensors_round_trip_builds_the_network_again(safetensors, tmp_path: Path) -> None:
    backbone = used("small", norm="group")
    path = tmp_path / "deep" / "model.safetensors"
    export.to_safetensors(backbone, path, "small", {"norm": "group"})
    back = export.from_safetensors(path)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert not back.training and torch.equal(back(images), backbone.eval()(images))
    tensors = safetensors.load_file(path)
    assert tensors.keys() == backbone.state_dict().keys()
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_damaged_and_foreign_safetensors_are_named(safetensors, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="from_safetensors: path must be a safetensors file, got .*model.safetensors"):
        export.from_safetensors(path)
    export.to_safetensors(used("small"), path, "small")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be a safetensors file"):
        export.from_safetensors(path)
    safetensors.save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="must carry the metadata of attfc-backbone-1, got None"):
        export.from_safetensors(path)
    for build in ("{}", "[", json.dumps({"name": "none", "embedding_dim": 4, "image_size": 32, "options": {}})):
        safetensors.save_file({"a": torch.zeros(2)}, str(path), {"attfc": "attfc-backbone-1", "build": build})
        with pytest.raises(ValueError, match="must hold a network of `backbones.build` and its tensors"):
            export.from_safetensors(path)


def test_an_unfinished_safetensors_leaves_the_old_file(safetensors, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("the one before")

    def full(tensors: dict, part: str, metadata: dict) -> None:
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export.to_safetensors(used("small"), path, "small")
    assert path.read_text() == "the one before" and list(tmp_path.iterdir()) == [path]


def test_a_missing_library_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(export.importlib, "import_module", absent)
    backbone = backbones.build("small", 8, 32)
    with pytest.raises(
        ImportError, match=r"to_onnx: onnxscript must be installed, .*pip install \"attfc_cuda\[export\]"
    ):
        export.to_onnx(backbone, tmp_path / "a.onnx")
    with pytest.raises(ImportError, match="to_safetensors: safetensors must be installed"):
        export.to_safetensors(backbone, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_a_run_and_an_import(
    safetensors, onnxruntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig()
    config.dataset.data, config.dataset.image_size, config.dataset.batch_size = "procedural:8x3", 32, 8
    config.model.embedding_dim, config.model.backbone_options = 24, "norm=group"
    config.optim.steps, config.verify.verify_num_pairs, config.verify.verify_every = 2, 20, 0
    config.run.run, config.run.device, config.run.tensorboard, config.run.progress = tmp_path / "a", "cpu", False, False
    train(config)
    assert cli.main(["export", "--run", str(tmp_path / "a"), "--to", str(tmp_path / "a.safetensors")]) == 0
    network = export.from_safetensors(tmp_path / "a.safetensors")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = network(images)
    assert cli.main(["export", "--run", str(tmp_path / "a"), "--to", str(tmp_path / "a.onnx")]) == 0
    assert "a.onnx, unit embeddings within" in capsys.readouterr().out
    torch.testing.assert_close(embed(onnxruntime, tmp_path / "a.onnx", images), expected, rtol=1e-4, atol=1e-4)

    assert cli.main(["export", "--run", str(tmp_path / "a"), "--to", str(tmp_path / "a.pt")]) == 2
    assert "export: to must end in .onnx or .safetensors, got" in capsys.readouterr().err
    assert cli.main(["export", "--run", str(tmp_path / "none"), "--to", str(tmp_path / "a.onnx")]) == 2
    assert "none" in capsys.readouterr().err


def insightface_backbone(path: Path) -> Callable:
    backbone = used("iresnet18")
    torch.save({f"module.{name}": value for name, value in backbone.state_dict().items()}, path)
    return backbone.eval()


def test_an_imported_backbone_is_a_run_to_verify_and_export(
    safetensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, folder = insightface_backbone(tmp_path / "model.pt"), str(tmp_path / "run")
    assert cli.main(["import", "--backbone", str(tmp_path / "model.pt"), "--to", folder]) == 0
    assert "step_00000000.pt" in capsys.readouterr().out
    assert cli.main(["export", "--run", folder, "--to", str(tmp_path / "b.safetensors")]) == 0
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(export.from_safetensors(tmp_path / "b.safetensors")(images), backbone(images))
    verify = ["verify", "--checkpoint", folder, "--data", "procedural:10x3", "--num-pairs", "20", "--device", "cpu"]
    assert cli.main(verify) == 0
    capsys.readouterr()
    assert cli.main(["import", "--backbone", str(tmp_path / "model.pt"), "--to", folder]) == 2
    assert "import: to must be a folder without checkpoints" in capsys.readouterr().err
    resume = ["train", "--run", folder, "--resume", "--data", "procedural:8x3", "--batch-size", "8", "--device", "cpu"]
    assert cli.main(resume) == 2
    assert "trained as the checkpoint was, by nothing (an imported backbone" in capsys.readouterr().err


def test_an_imported_config_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, to = tmp_path / "theirs.py", tmp_path / "new" / "ours.json"
    lines = [
        "config = edict()",
        'config.rec = "procedural:8x3"',
        'config.network = "mbf"',
        "config.embedding_size = 16",
    ]
    lines += ["config.batch_size = 8", "config.num_epoch = 1", "config.lr = 0.01", f"config.output = {str(tmp_path)!r}"]
    source.write_text("\n".join(lines))
    assert cli.main(["import", "--config", str(source), "--to", str(to)]) == 0
    assert "not the same: weight_decay" in capsys.readouterr().out
    tiny = ["--image-size", "16", "--steps", "2", "--workers", "0", "--device", "cpu", "--no-tensorboard"]
    assert cli.main(["train", "--config", str(to), "--run", str(tmp_path / "run"), *tiny]) == 0
    assert "FullyConnected with ArcFace, 8 centres" in capsys.readouterr().out
    assert cli.main(["import", "--to", str(to)]) == 2
    assert "import: backbone must be given, or config, and not both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("timm:resnet18", {"checkpoint_path": "/etc/passwd"}, "option 'checkpoint_path' must be set by no file"),
        ("timm:resnet18", {"pretrained_cfg": {"url": "x"}}, "option 'pretrained_cfg' must be set by no file"),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "x"}}, "'pretrained_cfg_overlay' must be set by no file"),
        ("timm:resnet18", {"cache_dir": "x"}, "option 'cache_dir' must be set by no file"),
        ("timm:resnet18", {"global_pool": "../avg"}, "option 'global_pool' must be a number or a short word"),
        ("timm:resnet18", {"drop_rate": [0.1] * 17}, "option 'drop_rate' must be a number or a short word"),
        ("small", {"drop_rate": 0.1}, "option 'drop_rate' must be set by no file"),
    ],
)
def test_files_set_an_allow_list_of_options_only(
    name: str, options: dict, refused: str, safetensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "build", lambda *arguments, **keywords: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=refused):
        options_from_file(name, options, "stranger.pt")
    metadata = {"attfc": export.FORMAT, "build": json.dumps(
        {"name": name, "embedding_dim": 8, "image_size": 32, "options": options})}  # fmt: skip
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "stranger.safetensors", metadata)
    with pytest.raises(ValueError, match=refused):
        export.from_safetensors(tmp_path / "stranger.safetensors")


def test_a_strangers_run_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "build", lambda *arguments, **keywords: pytest.fail("a network was built"))
    config = TrainConfig()
    config.model.backbone, config.model.backbone_options = "timm:resnet18", "checkpoint_path=/etc/passwd"
    checkpoint.save({"config": config.to_dict()}, tmp_path / "checkpoints", 1, keep=1)
    with pytest.raises(ValueError, match="option 'checkpoint_path' must be set by no file"):
        load_backbone(tmp_path)


def test_what_a_file_may_set_is_kept_and_weights_are_not_fetched() -> None:
    given = {"drop_rate": 0.1, "depths": [2, 2], "act_layer": "gelu", "pretrained": True}
    assert options_from_file("timm:resnet18", given, "a file") == {k: v for k, v in given.items() if k != "pretrained"}

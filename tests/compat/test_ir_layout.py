"""IR networks of face.evoLVe, AdaFace and CVLface: restated here, they embed alike once imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attfc_cuda import cli
from attfc_cuda.compat.insightface import load_backbone
from attfc_cuda.compat.ir_layout import as_iresnet
from attfc_cuda.train import TrainConfig
from attfc_cuda.train import load_backbone as load_run
from attfc_cuda.train.initial import read_initial

DIM, SIDE = 32, 32


class Unit(nn.Module):
    """A residual unit. AdaFace's has a BatchNorm behind the first convolution, face.evoLVe's has none."""

    def __init__(self, ingoing: int, outgoing: int, stride: int, middle: bool, excitation: bool = False) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if ingoing != outgoing:
            convolution = nn.Conv2d(ingoing, outgoing, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(outgoing))
        first, second = (
            nn.Conv2d(ingoing, outgoing, 3, 1, 1, bias=False),
            nn.Conv2d(outgoing, outgoing, 3, stride, 1, bias=False),
        )
        between = [nn.BatchNorm2d(outgoing)] if middle else []
        parts = [nn.BatchNorm2d(ingoing), first, *between, nn.PReLU(outgoing), second, nn.BatchNorm2d(outgoing)]
        self.res_layer = nn.Sequential(*parts, *([nn.Conv2d(outgoing, outgoing, 1)] if excitation else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(nn.Module):
    """IR-18 as AdaFace (middle, no scale at the end) or face.evoLVe builds it, for images of 32 pixels."""

    def __init__(self, middle: bool, affine: bool, excitation: bool = False) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        sizes = [64, 64, 128, 256, 512]
        units = [
            Unit(a if first else b, b, 2 if first else 1, middle, excitation)
            for a, b in zip(sizes, sizes[1:], strict=False)
            for first in (True, False)
        ]
        self.body = nn.Sequential(*units)
        last = nn.BatchNorm1d(DIM, affine=affine)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 4, DIM), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


def network(middle: bool, affine: bool) -> IR:
    torch.manual_seed(3)
    made = IR(middle, affine)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return made.eval()


def behind(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FILES: dict[str, tuple[bool, bool, Callable[[dict], dict]]] = {
    "adaface": (True, False, lambda state: {"state_dict": {**behind("model.", state), "head.kernel": torch.ones(4)}}),
    "cvlface": (True, False, lambda state: behind("net.", state)),
    "face.evoLVe": (False, True, lambda state: state),
    "face.evoLVe in parallel": (False, True, lambda state: behind("module.", state)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_their_networks_embed_alike(name: str, tmp_path: Path) -> None:
    middle, affine, packed = FILES[name]
    theirs = network(middle, affine)
    torch.save(packed(theirs.state_dict()), tmp_path / "model.ckpt")
    ours = load_backbone(tmp_path / "model.ckpt")
    assert (ours.embedding_dim, ours.image_size) == (DIM, SIDE)
    images = torch.rand(3, 3, SIDE, SIDE) * 2 - 1
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    for one in (ours, theirs):  # and so while they are trained on
        one.train()
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


def test_import_makes_a_run_that_keeps_the_options_and_the_channel_order(tmp_path: Path) -> None:
    theirs = network(True, False)
    torch.save(FILES["adaface"][2](theirs.state_dict()), tmp_path / "adaface.ckpt")
    words = ["import", "--backbone", str(tmp_path / "adaface.ckpt"), "--to", str(tmp_path / "run"), "--bgr"]
    assert cli.main(words) == 0
    ours = load_run(tmp_path / "run")[0].eval()
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    torch.testing.assert_close(ours(images), theirs(images.flip(1)), rtol=1e-4, atol=1e-4)
    config = TrainConfig.load(tmp_path / "run" / "config.json")
    assert (config.model.backbone, config.model.backbone_options) == ("iresnet18", "pool_shortcut=True")


def test_init_takes_them_and_names_the_options_that_they_need(tmp_path: Path) -> None:
    theirs = network(False, True)
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "ir.pth")
    config = TrainConfig()
    config.model.backbone, config.model.embedding_dim, config.dataset.image_size = "iresnet18", DIM, SIDE
    config.model.init = tmp_path / "ir.pth"
    with pytest.raises(ValueError, match="missing layer.*its options are pool_shortcut=True,middle_norm=False"):
        read_initial(config)
    config.model.backbone_options = "pool_shortcut=True,middle_norm=False"
    found = read_initial(config)
    assert torch.equal(found.state["conv1.weight"], theirs.input_layer[0].weight) and not found.left_out


def test_what_is_no_ir_network_is_named(tmp_path: Path) -> None:
    torch.save(IR(True, False, excitation=True).state_dict(), tmp_path / "se.pth")
    with pytest.raises(ValueError, match=r"load_backbone: path must hold .*convolutions at the places \[1, 4, 6\]"):
        load_backbone(tmp_path / "se.pth")
    state = network(True, False).state_dict()
    with pytest.raises(ValueError, match="output_layer.7.weight, which no IR network has"):
        as_iresnet({**state, "output_layer.7.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="no channels in body.2, of which a stage has one of"):
        as_iresnet({name: tensor for name, tensor in state.items() if name != "body.2.res_layer.4.weight"})

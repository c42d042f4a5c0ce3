"""Files of strangers reach no allocation that they do not pay for, and end in the documented errors alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attfc_cuda import FullyConnected, backbones, export
from attfc_cuda.compat.insightface import load_backbone, load_centers, read_config
from attfc_cuda.train import TrainConfig, checkpoint

SIZES = {"embedding_dim": 8, "image_size": 16}


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return backbones.build("iresnet18", **SIZES).state_dict()


def changed(state: dict[Any, Any], **changes: Any) -> dict[Any, Any]:
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


# 64 GiB by its shape, of 4 bytes stored; of side 181 as the network would be built.
CLAIMED = {
    "expanded": torch.zeros(1, 1).expand(1024, 512 * 181**2),
    "strided": torch.zeros(3).as_strided((8, 512), (0, 0)),
}
FAULTS: dict[str, tuple[Callable[[dict[Any, Any]], Any], str]] = {
    "stride 0": (lambda s: changed(s, fc__weight=CLAIMED["expanded"]), r"fc.weight of shape .* 4 are stored"),
    "stride 0, its own shape": (lambda s: changed(s, fc__weight=CLAIMED["strided"]), r"fc.weight .* 12 are stored"),
    "int key": (lambda s: {**s, 7: torch.zeros(1)}, "a tensor called 7, which is no name"),
    "sparse": (lambda s: changed(s, fc__weight=torch.eye(8, 512).to_sparse()), "fc.weight is torch.sparse_coo, not"),
    "meta": (lambda s: changed(s, fc__weight=torch.empty(8, 512, device="meta")), "fc.weight is on the device meta"),
    "NaN": (lambda s: changed(s, bn1__bias=torch.full((64,), float("nan"))), "NaN or infinite numbers in bn1.bias"),
    "no tensor": (lambda s: changed(s, bn1__bias="text"), "str at 'bn1.bias'"),
    "two of one name": (lambda s: {**s, "module.bn1.bias": s["bn1.bias"]}, "two tensors called bn1.bias"),
    "no square": (lambda s: changed(s, fc__weight=torch.zeros(8, 1025)), r"\[8, 1025\]"),
    "nothing": (lambda s: changed(s, fc__weight=torch.zeros(0, 512)), r"\[0, 512\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_backbone_that_is_not_plain_is_refused(fault: str, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    torch.save(change(dict(whole)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"load_backbone: path must (?s:.*){message}") as refused:
        load_backbone(tmp_path / "model.pt")
    assert "model.pt" in str(refused.value)


def test_names_that_torch_compile_and_ddp_give_are_dropped(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for prefix in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({prefix + name: value for name, value in whole.items()}, tmp_path / "model.pt")
        loaded = load_backbone(tmp_path / "model.pt").state_dict()
        assert loaded.keys() == whole.keys() and torch.equal(loaded["fc.weight"], whole["fc.weight"])
    network = backbones.build("small", **SIZES)
    export.to_safetensors(torch.compile(network), tmp_path / "a.safetensors", "small")  # type: ignore[arg-type]
    loaded = export.from_safetensors(tmp_path / "a.safetensors").state_dict()
    assert loaded.keys() == network.state_dict().keys()


def test_centres_and_checkpoints_are_wholly_stored(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1, 4).expand(25, 4)}, tmp_path / "softmax_fc_gpu_0.pt")
    with pytest.raises(ValueError, match=r"softmax_fc_gpu_0.pt, which does not load \(weight of shape \[25, 4\]"):
        load_centers(FullyConnected(4, 25), tmp_path)
    state = {"objective": {"lists": [torch.zeros(1).expand(2**40)]}}
    path = checkpoint.save(state, tmp_path / "checkpoints", step=3, keep=1)
    with pytest.raises(checkpoint.CheckpointError, match=r"objective.lists\[0\] of shape .* 4 are stored"):
        checkpoint.load(path)


def test_an_archive_that_unpacks_to_more_is_refused(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(whole, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, zipfile.ZipFile(tmp_path / "small.pt", "w") as small:
        for entry in stored.infolist():
            small.writestr(entry.filename, stored.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="small.pt, which does not load .*is compressed"):
        load_backbone(tmp_path / "small.pt")


def test_sizes_in_a_safetensors_file_build_nothing_that_its_tensors_do_not_fill(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in backbones.build("small", **SIZES).state_dict().items()}
    for sizes in ({"embedding_dim": 2**33}, {"embedding_dim": 10**400}, {"image_size": 2**18}, {"embedding_dim": "8"}):
        build = json.dumps({"name": "small", **SIZES, "options": {}, **sizes})
        save_file(tensors, str(tmp_path / "a.safetensors"), {"attfc": export.FORMAT, "build": build})
        with pytest.raises(ValueError, match="hold a network of .* a.safetensors|got .*a.safetensors"):
            export.from_safetensors(tmp_path / "a.safetensors")
    tensors["fc.bias" if "fc.bias" in tensors else next(iter(tensors))].fill_(float("nan"))
    save_file(
        tensors,
        str(tmp_path / "a.safetensors"),
        {"attfc": export.FORMAT, "build": json.dumps({"name": "small", **SIZES, "options": {}})},
    )
    with pytest.raises(ValueError, match="NaN or infinite numbers in"):
        export.from_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "text", ['{"optim": {"lr": 1%s}}' % ("0" * 400), '{"run": {"seed": 1%s}}' % ("0" * 400), "[" * 99999]
)
def test_numbers_and_depths_of_json_have_an_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config (\w+\.\w+ )?must"):
        TrainConfig.load(tmp_path / "config.json")


@pytest.mark.parametrize(
    "value",
    ['"x" * 10**9', '"x" * 1000000000', "[0] * 99999999", "9" * 40, "1e999", "1e308 * 10.0", "...", "1j", "b'x'"],
)
def test_what_would_be_huge_or_is_no_value_is_not_computed(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.py").write_text(f"config = edict()\nconfig.a = {value}\n")
    with pytest.raises(ValueError, match=r"read_config: path must hold assignments .* got line 2 of .*config.py"):
        read_config(tmp_path / "config.py")


def test_lists_of_lists_and_long_files_have_an_end(tmp_path: Path) -> None:
    doubled = "config.a = (1, 1)\n" + "config.a = (config.a, config.a)\n" * 40
    (tmp_path / "config.py").write_text(doubled)
    with pytest.raises(ValueError, match=r"got line 1\d of .*config.py"):
        read_config(tmp_path / "config.py")
    (tmp_path / "config.py").write_text("#" * 2**17)
    with pytest.raises(ValueError, match=r"have at most 65536 characters, got more in .*config.py"):
        read_config(tmp_path / "config.py")

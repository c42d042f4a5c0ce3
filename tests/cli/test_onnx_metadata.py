"""What an ONNX file says of itself: what our commands read back, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attfc_cuda import backbones, cli, export
from attfc_cuda.evaluation.fingerprint import embedding_kind, fingerprint
from attfc_cuda.onnx_network import OnnxDescription, OnnxNetwork, thresholds_for

POINT = {"tar": 0.5, "threshold": 0.31, "tar_interval": [0.4, 0.6]}


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed: no onnxscript")
    pytest.importorskip("onnxruntime", reason="the extra [export] is not installed: no onnxruntime")
    return pytest.importorskip("onnx", reason="the extra [export] is not installed: no onnx")


@pytest.fixture(scope="module")
def exported(onnx, tmp_path_factory):
    """A network, and its file with the mirrored sum at unit length."""
    torch.manual_seed(0)
    backbone = backbones.build("small", embedding_dim=24, image_size=32).eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    options = {"flip": True, "unit": True, "thresholds": {"0.001": POINT}, "thresholds_set": "lfw"}
    assert export.to_onnx(backbone, path, "small", **options) <= 1e-4
    return backbone, path


def changed(onnx, path: Path, to: Path, **metadata: str | None) -> Path:
    """The file with other metadata; None leaves an entry out."""
    model = onnx.load(str(path))
    kept = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: value for key, value in kept.items() if value is not None})
    onnx.save(model, str(to))
    return to


def test_flip_and_unit_length_are_in_the_graph_and_said(onnx, exported):
    backbone, path = exported
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = F.normalize(backbone(images) + backbone(images.flip(-1)))
    network = OnnxNetwork(path)
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert metadata["color"] == "RGB" and metadata["value_range"] == "-1 to 1"
    assert metadata["normalization"] == "(pixel - 127.5) / 127.5" and metadata["input_size"] == "3 x 32 x 32"
    assert metadata["thresholds_embedding"] == "mirrored sum"
    assert network.description == OnnxDescription(
        "small", 32, 24, "mirrored sum", True, fingerprint(backbone), {"0.001": POINT}, "lfw"
    )
    assert fingerprint(network) == fingerprint(backbone)
    # Nothing is mirrored a second time.
    assert embedding_kind(network, True) == embedding_kind(network, False) == ("mirrored sum", False)
    assert embedding_kind(backbone, True) == ("mirrored sum", True) and embedding_kind(None, True) == ("pixels", False)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"color": "BGR"}, "from_onnx: color in .* must be RGB, got BGR"),
        ({"value_range": "0 to 1"}, "from_onnx: value_range in .* must be -1 to 1, got 0 to 1"),
        ({"normalization": None}, r"from_onnx: normalization in .* must be \(pixel - 127.5\) / 127.5, got None"),
        ({"format": None}, "from_onnx: path must carry the metadata of attfc-onnx-1.*order of its channels"),
        ({"image_size": "64"}, "from_onnx: graph of .* must have an input and an output as .*64"),
        ({"embedding_dim": "x"}, "from_onnx: path must carry whole metadata"),
        ({"thresholds": "["}, "from_onnx: path must carry whole metadata"),
        ({"embedding": "sum"}, "from_onnx: embedding in .* must be plain or mirrored sum, got sum"),
        ({"embedding": "plain"}, "thresholds in .* must be for the embedding of the graph, got mirrored sum, and"),
    ],
)
def test_a_file_that_takes_another_input_is_refused(metadata, message, onnx, exported, tmp_path):
    with pytest.raises(ValueError, match=message):
        OnnxNetwork(changed(onnx, exported[1], tmp_path / "changed.onnx", **metadata))


def test_what_is_no_onnx_file(onnx, tmp_path):
    with pytest.raises(FileNotFoundError, match="from_onnx: path must exist"):
        OnnxNetwork(tmp_path / "none.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(ValueError, match="from_onnx: path must be an ONNX file"):
        OnnxNetwork(tmp_path / "noise.onnx")


def test_the_commands_verify_a_file_as_they_verify_its_network(onnx, exported, tmp_path, capsys):
    _, path = exported
    arguments = ["verify", "--checkpoint", str(path), "--data", "procedural:8x3", "--device", "cpu", "--far", "0.1"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "held-out_small.json").read_text())
    assert numbers["embedding"] == "mirrored sum" and numbers["network"] == fingerprint(exported[0])
    assert np.isfinite(numbers["at_far"]["0.1"]["threshold"])
    bgr = changed(onnx, path, tmp_path / "bgr.onnx", color="BGR")
    capsys.readouterr()
    assert cli.main(["verify", "--checkpoint", str(bgr), "--data", "procedural:8x3"]) == 2
    assert "must be RGB, got BGR" in capsys.readouterr().err


def verified(path: Path, **fields: object) -> Path:
    found = {"network": "n1", "embedding": "plain", "num_impostors": 10, "at_far": {"0.1": POINT}} | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def test_thresholds_are_for_one_network_and_one_embedding(tmp_path):
    assert thresholds_for(None, tmp_path, "n1", "plain") == ({}, "", None)
    verified(tmp_path / "verify" / "small.json")
    large = verified(tmp_path / "large.json", num_impostors=99, at_far={"0.01": POINT})
    verified(tmp_path / "other.json", num_impostors=999, network="n2")
    verified(tmp_path / "mirrored.json", num_impostors=999, embedding="mirrored sum")
    (tmp_path / "damaged.json").write_text("{")
    assert thresholds_for(None, tmp_path, "n1", "plain") == ({"0.01": POINT}, "large", large)
    assert thresholds_for(tmp_path / "verify" / "small.json", tmp_path, "n1", "plain")[0] == {"0.1": POINT}
    for name, message in {
        "other.json": "export: thresholds must be those of this network, n1, got n2 in .*verify the same checkpoint",
        "mirrored.json": "must be for the plain embedding, got mirrored sum in .*; export with --flip, or verify with",
        "damaged.json": "export: thresholds must be a JSON file that attfc verify wrote",
    }.items():
        with pytest.raises(ValueError, match=message):
            thresholds_for(tmp_path / name, tmp_path, "n1", "plain")

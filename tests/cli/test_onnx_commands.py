"""`attfc embed`, `compare` and `identify` on an exported ONNX file: the run's own answers, and no other input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc_cuda import cli

SIZE = 16


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed: no onnxscript")
    pytest.importorskip("onnxruntime", reason="the extra [export] is not installed: no onnxruntime")
    return pytest.importorskip("onnx", reason="the extra [export] is not installed: no onnx")


@pytest.fixture(scope="module")
def place(onnx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, verified; its network as plain.onnx and as whole.onnx (mirrored sum, unit length); faces of colour."""
    place = tmp_path_factory.mktemp("onnx")
    run, tiny = place / "run", f"--image-size {SIZE} --batch-size 8 --embedding-dim 16 --device cpu --threads 1"
    quiet = "--steps 3 --verify-num-pairs 20 --no-tensorboard --no-pictures"
    assert cli.main(["train", "--data", "procedural:16x4", *tiny.split(), *quiet.split(), "--run", str(run)]) == 0
    assert cli.main(["verify", "--checkpoint", str(run), "--data", "procedural:20x4@99", "--far", "0.1"]) == 0
    assert cli.main(["export", "--run", str(run), "--to", str(place / "plain.onnx")]) == 0
    assert cli.main(["export", "--run", str(run), "--to", str(place / "whole.onnx"), "--flip", "--unit"]) == 0
    draw = np.random.default_rng(0)
    for name in ("ann", "bob", "cyd"):
        pixels = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for image in range(2):
            (place / "faces" / name).mkdir(parents=True, exist_ok=True)
            noisy = (pixels.astype(int) + draw.integers(-9, 10, pixels.shape)).clip(0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(place / "faces" / name / f"{image}.png")
    return place


def embedded(place: Path, to: Path, checkpoint: str, *more: str) -> np.ndarray:
    arguments = ["embed", str(place / "faces"), "--checkpoint", str(place / checkpoint), "--to", str(to), *more]
    assert cli.main(arguments) == 0
    return np.load(to)


@pytest.mark.parametrize(
    ("file", "flags"), [("plain.onnx", ["--flip"]), ("plain.onnx", ["--no-flip"]), ("whole.onnx", [])]
)
def test_a_file_embeds_as_its_run_does(place: Path, tmp_path: Path, file: str, flags: list[str]) -> None:
    """To what `attfc export` allows itself: 1e-4 a component."""
    expected = embedded(place, tmp_path / "run.npy", "run", *flags)
    found = embedded(place, tmp_path / "onnx.npy", file, *flags)
    assert found.shape == expected.shape == (6, 16) and np.abs(found - expected).max() < 2e-4
    plain = embedded(place, tmp_path / "plain.npy", "run", "--no-flip")
    mirrored = embedded(place, tmp_path / "mirrored.npy", "run")
    assert np.abs(plain - mirrored).max() > 1e-2, "the two kinds must differ for the above to tell"


def test_a_file_brings_its_threshold(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = [str(place / "faces" / "ann" / name) for name in ("0.png", "1.png")]
    answers = {}
    for checkpoint in ("run", "whole.onnx"):
        capsys.readouterr()
        arguments = ["compare", *faces, "--checkpoint", str(place / checkpoint), "--far", "0.1", "--json"]
        assert cli.main(arguments) == 0
        answers[checkpoint] = json.loads(capsys.readouterr().out)
    assert answers["whole.onnx"]["threshold"] == answers["run"]["threshold"]
    assert answers["whole.onnx"]["cosine"] == pytest.approx(answers["run"]["cosine"], abs=1e-3)
    assert answers["whole.onnx"]["same"] == answers["run"]["same"]
    # The run's report is of the mirrored sum, so the plain file has no threshold in it.
    assert cli.main(["compare", *faces, "--checkpoint", str(place / "plain.onnx"), "--far", "0.1"]) == 2
    assert "compare: far must be one of none, the rates in " in capsys.readouterr().err


def test_a_file_finds_who_its_run_finds(place: Path, tmp_path: Path) -> None:
    answers = []
    for checkpoint in ("run", "whole.onnx"):
        out, faces = tmp_path / checkpoint, str(place / "faces")
        arguments = ["identify", faces, "--gallery", faces, "--checkpoint", str(place / checkpoint), "--out", str(out)]
        assert cli.main(arguments) == 0
        lines = (out / "identified.csv").read_text().splitlines()[1:]
        answers.append([line.rpartition(",") for line in lines if line.split(",")[1] == "1"])
    of_run, of_file = answers
    assert [who for who, *_ in of_run] == [who for who, *_ in of_file] and len(of_run) == 6
    # A threshold of one is a threshold of the other, with several images a person too.
    assert [float(score) for *_, score in of_file] == pytest.approx([float(score) for *_, score in of_run], abs=1e-3)


@pytest.mark.parametrize("command", ["embed", "compare", "identify", "verify"])
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"color": "BGR"}, "color in .* must be RGB, got BGR"),
        ({"value_range": "0 to 255"}, "value_range in .* must be -1 to 1, got 0 to 255"),
        ({"image_size": "112"}, "graph of .* must have an input and an output as .*112"),
        ({"format": ""}, "path must carry the metadata of attfc-onnx-1"),
    ],
    ids=["order", "range", "size", "stranger"],
)
def test_another_input_does_not_pass(onnx, place, tmp_path, command, metadata, message, capsys) -> None:
    model = onnx.load(str(place / "plain.onnx"))
    kept = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, str(tmp_path / "other.onnx"))
    faces, face = str(place / "faces"), str(place / "faces" / "ann" / "0.png")
    arguments = {
        "embed": [faces, "--to", str(tmp_path / "x.npy")],
        "compare": [face, face],
        "identify": [faces, "--gallery", faces],
        "verify": ["--data", faces],
    }[command]
    assert cli.main([command, *arguments, "--checkpoint", str(tmp_path / "other.onnx")]) == 2
    assert re.search(f"attfc: from_onnx: {message}", capsys.readouterr().err)
    assert not (tmp_path / "x.npy").exists()


def test_a_report_of_another_network_is_refused(place: Path, tmp_path: Path, capsys) -> None:
    report = next((place / "run" / "verify").glob("*.json"))
    changed = json.loads(report.read_text()) | {"network": "0" * 16}
    (tmp_path / "report.json").write_text(json.dumps(changed))
    face = str(place / "faces" / "ann" / "0.png")
    arguments = ["compare", face, face, "--checkpoint", str(place / "run"), "--far", "0.1"]
    assert cli.main([*arguments, "--report", str(tmp_path / "report.json")]) == 2
    assert "compare: report must be of this network, " in capsys.readouterr().err
    assert cli.main([*arguments, "--report", str(report)]) == 0

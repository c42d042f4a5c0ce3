"""`attfc embed`, `compare` and `identify` on a small run and JPEG files, with their output read back by others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda import cli
from attfc_cuda.evaluation import embed_images
from attfc_cuda.evaluation.named_images import NamedEmbeddings, gallery_of
from attfc_cuda.train import checkpoint, load_backbone

SIZE = 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three training steps."""
    run = tmp_path_factory.mktemp("identify") / "run"
    tiny = ["--image-size", str(SIZE), "--batch-size", "8", "--embedding-dim", "16", "--device", "cpu"]
    data = ["--data", "procedural:16x4", "--steps", "3", "--verify-num-pairs", "20", "--no-tensorboard"]
    assert cli.main(["train", *data, *tiny, "--threads", "1", "--run", str(run)]) == 0
    return run


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """gallery/NAME/0.jpg and probes/NAME/1.jpg of noise; `dee` is in no gallery."""
    draw = np.random.default_rng(0)
    for name in ("ann", "bob", "cyd", "dee"):
        pixels = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for part, file, noise in (("gallery", "0.jpg", 0), ("probes", "1.jpg", 12)):
            if (name, part) != ("dee", "gallery"):
                folder = tmp_path / part / name
                folder.mkdir(parents=True)
                noisy = pixels.astype(int) + draw.integers(-noise, noise + 1, pixels.shape)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / file, quality=95)
    return tmp_path


def embedded(trained: Path, files: list[Path], **options) -> np.ndarray:
    return embed_images(load_backbone(trained)[0], files, **options).numpy()


# Batches of another size may sum in another order: some roundings of a unit vector's numbers.
TOLERANCE = 64 * 2**-24


@pytest.mark.parametrize("names", ["csv", "json"])
def test_embed_writes_rows_in_the_order_of_their_names(trained, faces, tmp_path, names) -> None:
    to = tmp_path / "out" / "faces.npy"
    arguments = ["embed", str(faces / "probes"), "--checkpoint", str(trained), "--to", str(to), "--names", names]
    assert cli.main(arguments) == 0
    array = np.load(to)
    with open(to.with_suffix(f".{names}"), encoding="utf-8") as file:
        if names == "csv":
            rows = list(csv.DictReader(file))
            columns = {key: [row[key] for row in rows] for key in ("name", "identity")}
        else:
            columns = json.load(file)
    files = [faces / "probes" / name / "1.jpg" for name in ("ann", "bob", "cyd", "dee")]
    assert columns == {"name": list(map(str, files)), "identity": ["ann", "bob", "cyd", "dee"]}
    assert array.dtype == np.float32 and np.abs(array - embedded(trained, files)).max() < TOLERANCE


def test_embed_takes_a_plain_folder_one_image_and_several_sources(trained, faces, tmp_path) -> None:
    plain = faces / "plain"
    plain.mkdir()
    for name in ("ann", "bob"):
        (plain / f"{name}.jpg").write_bytes((faces / "probes" / name / "1.jpg").read_bytes())
    (plain / "broken.jpg").write_bytes(b"no image")
    (plain / "notes.txt").write_text("not an image")
    (faces / "list.txt").write_text(f"{faces}/probes/cyd/1.jpg 0\n")
    spec = f"{plain},{faces}/probes/dee/1.jpg,{faces}/list.txt"
    arguments = ["embed", spec, "--checkpoint", str(trained), "--to", str(tmp_path / "a.npy"), "--no-flip", "--no-unit"]
    assert cli.main(arguments) == 0
    with open(tmp_path / "a.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["identity"] for row in rows] == ["", "", "", "0"]
    files = [faces / "probes" / name / "1.jpg" for name in ("ann", "bob", "dee", "cyd")]
    expected = embedded(trained, files, flip=False, unit=False)
    got = np.load(tmp_path / "a.npy")
    assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max() * 16
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() > 0.01


def test_embed_says_what_it_leaves_out_or_stops(trained, faces, tmp_path, capsys) -> None:
    (faces / "probes" / "bob" / "2.jpg").write_bytes(b"no image")
    arguments = ["embed", str(faces / "probes"), "--checkpoint", str(trained), "--to", str(tmp_path / "a.npy")]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert "4 embeddings of 16 numbers" in shown.out and "attfc: left out: " in shown.err and "2.jpg" in shown.err
    (tmp_path / "a.npy").unlink()
    assert cli.main([*arguments, "--on-bad-image", "raise"]) == 2
    assert "2.jpg" in capsys.readouterr().err and not (tmp_path / "a.npy").exists()
    assert cli.main([*arguments[:-1], str(tmp_path / "a.bin")]) == 2
    assert "embed: to must end in .npy or .parquet, got " in capsys.readouterr().err


def test_embed_writes_parquet_that_pyarrow_reads(trained, faces, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arguments = ["embed", str(faces / "gallery"), "--checkpoint", str(trained), "--to", str(tmp_path / "a.parquet")]
    assert cli.main(arguments) == 0
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    files = [faces / "gallery" / name / "0.jpg" for name in ("ann", "bob", "cyd")]
    assert table["name"] == list(map(str, files)) and table["identity"] == ["ann", "bob", "cyd"]
    assert np.abs(np.array(table["embedding"]) - embedded(trained, files)).max() < TOLERANCE
    probes = [str(faces / "probes"), "--checkpoint", str(trained), "--gallery"]
    assert cli.main(["identify", *probes, str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "identified.csv").is_file()


def test_compare_prints_the_cosine_and_decides(trained, faces, capsys) -> None:
    pair = [faces / "gallery" / "ann" / "0.jpg", faces / "probes" / "bob" / "1.jpg"]
    first, second = embedded(trained, pair).astype(np.float64)
    arguments = ["compare", *map(str, pair), "--checkpoint", str(trained)]
    assert cli.main([*arguments, "--json"]) == 0
    cosine = json.loads(capsys.readouterr().out)["cosine"]
    assert abs(cosine - first @ second) < 16 * TOLERANCE
    for threshold, same in ((cosine - 1e-6, True), (cosine + 1e-6, False)):
        assert cli.main([*arguments, "--json", "--threshold", str(threshold)]) == 0
        assert json.loads(capsys.readouterr().out)["same"] is same
        assert cli.main([*arguments, "--threshold", str(threshold)]) == 0
        assert ("the same person" if same else "two people") in capsys.readouterr().out


def test_compare_takes_the_threshold_at_a_far_from_a_report(trained, faces, tmp_path, capsys) -> None:
    pair = [str(faces / "gallery" / "ann" / "0.jpg"), str(faces / "probes" / "ann" / "1.jpg")]
    arguments = ["compare", *pair, "--checkpoint", str(trained), "--far", "1e-3"]
    report = tmp_path / "report.json"
    at_far = {"0.01": {"threshold": -1.0}, "0.001": {"threshold": 1.0}}
    report.write_text(json.dumps({"at_far": at_far, "embedding": "mirrored sum"}))
    assert cli.main([*arguments, "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert ": two people (threshold 1.0000, FAR 0.001 of " in shown
    assert cli.main([*arguments[:-1], "1e-2", "--report", str(report)]) == 0
    assert ": the same person (threshold -1.0000, FAR 0.01 of " in capsys.readouterr().out
    assert cli.main([*arguments[:-1], "1e-4", "--report", str(report)]) == 2
    assert "far must be one of 0.01, 0.001, the rates in " in capsys.readouterr().err
    assert cli.main([*arguments, "--no-flip", "--report", str(report)]) == 2
    assert "report must be of embeddings of the kind 'plain', got 'mirrored sum'" in capsys.readouterr().err


def test_compare_finds_the_one_report_of_a_run(trained, faces, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    pair = [str(faces / "gallery" / "ann" / "0.jpg"), str(faces / "probes" / "ann" / "1.jpg")]
    arguments = ["compare", *pair, "--checkpoint", str(run / "checkpoints" / "step_00000003.pt"), "--far", "0.01"]
    (run / "verify").mkdir()
    (run / "verify" / "other.json").write_text("{}")
    assert cli.main(arguments) == 2
    assert "report must be the one report with thresholds in " in capsys.readouterr().err
    (run / "verify" / "a.json").write_text(json.dumps({"at_far": {"0.01": {"threshold": -1.0}}}))
    assert cli.main(arguments) == 0
    assert "the same person (threshold -1.0000, FAR 0.01 of " in capsys.readouterr().out
    (run / "verify" / "b.json").write_text(json.dumps({"at_far": {"0.01": {"threshold": -1.0}}}))
    assert cli.main(arguments) == 2
    assert "got a.json, b.json; name it with --report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "0.3", "--far", "0.1"], "threshold must be given, or far, and not both"),
        (["--threshold", "30"], "threshold must be a cosine"),
        (["--far", "2"], "far must lie between 0 and 1"),
        (["--report", "r.json"], "report must come with far"),
        (["--far", "0.1", "--report", "absent.json"], "report must be a readable JSON file"),
    ],
)
def test_compare_refuses(trained, faces, capsys, flags, message) -> None:
    pair = [str(faces / "gallery" / "ann" / "0.jpg")] * 2
    assert cli.main(["compare", *pair, "--checkpoint", str(trained), *flags]) == 2
    assert f"attfc: compare: {message}" in capsys.readouterr().err


def nearest(trained: Path, faces: Path) -> dict[str, list[tuple[str, float]]]:
    known = embedded(trained, [faces / "gallery" / name / "0.jpg" for name in ("ann", "bob", "cyd")])
    answers = {}
    for name in ("ann", "bob", "cyd", "dee"):
        path = faces / "probes" / name / "1.jpg"
        scores = known @ embedded(trained, [path])[0]
        answers[str(path)] = [(("ann", "bob", "cyd")[i], float(scores[i])) for i in np.argsort(-scores)]
    return answers


def test_identify_names_the_nearest_of_the_gallery(trained, faces, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    probes = [str(faces / "probes"), "--checkpoint", str(trained)]
    assert cli.main(["embed", str(faces / "gallery"), "--checkpoint", str(trained), "--to", f"{tmp_path}/g.npy"]) == 0
    expected = nearest(trained, faces)
    for gallery in (str(faces / "gallery"), f"{tmp_path}/g.npy"):
        arguments = ["identify", *probes, "--gallery", gallery, "--top-k", "2", "--out", str(out), "--evaluate"]
        assert cli.main(arguments) == 0
        with open(out / "identified.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["rank"] for row in rows] == ["1", "2"] * 4
        for row in rows:
            identity, score = expected[row["probe"]][int(row["rank"]) - 1]
            assert row["identity"] == identity and abs(float(row["cosine"]) - score) < 2 * TOLERANCE + 1e-6
        numbers = json.loads((out / "identification.json").read_text())
        right = [expected[str(faces / "probes" / name / "1.jpg")][0][0] == name for name in ("ann", "bob", "cyd")]
        assert numbers["rank"] == {"1": pytest.approx(np.mean(right))}
        assert (numbers["num_gallery"], numbers["num_mated"], numbers["num_non_mated"]) == (3, 3, 1)
    assert "closed set: rank-1 " in capsys.readouterr().out


def test_identify_names_nobody_below_the_threshold(trained, faces, capsys) -> None:
    arguments = ["identify", str(faces / "probes"), "--checkpoint", str(trained), "--gallery", str(faces / "gallery")]
    best = sorted(scores[0][1] for scores in nearest(trained, faces).values())
    between = (best[0] + best[1]) / 2
    assert cli.main([*arguments, "--threshold", str(between)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and sum("nobody in the gallery" in line for line in lines) == 1


def test_a_probe_that_the_gallery_has_is_not_counted(trained, faces, capsys) -> None:
    arguments = ["identify", "--checkpoint", str(trained), "--gallery", str(faces / "gallery"), "--evaluate"]
    assert cli.main([*arguments, f"{faces}/gallery,{faces}/probes"]) == 0
    shown = capsys.readouterr()
    assert "3 probes are not counted: the gallery has them" in shown.err and "(3 probes, 3 identities" in shown.out
    assert cli.main([*arguments, f"{faces}/gallery"]) == 2
    assert "probes must be other images than the gallery's" in capsys.readouterr().err
    assert cli.main([*arguments, f"{faces}/probes/ann/1.jpg"]) == 2
    assert "probes must say whose each image is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "probes must be given with gallery, or ijb alone"),
        (["p", "--gallery", "g", "--top-k", "0"], "top_k must be at least 1"),
        (["p", "--gallery", "g", "--threshold", "2"], "threshold must be a cosine"),
        (["p", "--ijb", "folder"], "probes must be given with gallery, or ijb alone"),
    ],
)
def test_identify_refuses_before_it_reads(capsys, flags, message) -> None:
    assert cli.main(["identify", "--checkpoint", "absent", *flags]) == 2
    assert f"attfc: identify: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["g.npy", "g.parquet"])
def test_a_gallery_of_another_network_or_kind_is_refused(trained, faces, tmp_path, capsys, file) -> None:
    """Though its embeddings are as long: a cosine between networks means nothing."""
    if file.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    other, gallery = tmp_path / "other.pt", tmp_path / file
    state = checkpoint.load_newest(trained / "checkpoints")
    next(iter(state["backbone"].values())).add_(1e-3)
    torch.save(state, other)
    arguments = ["identify", str(faces / "probes"), "--gallery", str(gallery), "--checkpoint"]
    made = ["embed", str(faces / "gallery"), "--to", str(gallery), "--checkpoint"]
    for network, refused in ((trained, False), (other, True)):
        assert cli.main([*made, str(network)]) == 0
        capsys.readouterr()
        assert cli.main([*arguments, str(trained)]) == (2 if refused else 0)
        shown = capsys.readouterr().err
        assert ("identify: gallery must hold embeddings of this network, " in shown) is refused
        assert not refused or f"{gallery}; make it anew with `attfc embed` and {trained}" in shown
        assert cli.main([*arguments, str(other)]) == (0 if refused else 2)
    assert cli.main([*made, str(trained), "--no-flip"]) == 0
    capsys.readouterr()
    assert cli.main([*arguments, str(trained)]) == 2
    assert "gallery must hold embeddings of the kind 'mirrored sum', got 'plain' in " in capsys.readouterr().err
    assert cli.main([*arguments, str(trained), "--no-flip"]) == 0
    if file == "g.npy":  # of an earlier release, or written by others
        (tmp_path / "g.network.json").unlink()
        assert cli.main([*arguments, str(trained)]) == 0
        assert "g.npy does not say what network its embeddings are of" in capsys.readouterr().err
        (tmp_path / "g.network.json").write_text('{"network": 3')
        assert cli.main([*arguments, str(trained)]) == 2
        assert "must be a file of `attfc embed`, got " in capsys.readouterr().err


def test_a_gallery_without_names_or_of_another_network_is_refused(trained, faces, tmp_path, capsys) -> None:
    arguments = ["identify", str(faces / "probes"), "--checkpoint", str(trained), "--gallery"]
    assert cli.main([*arguments, str(faces / "gallery" / "ann")]) == 2
    assert "gallery must say whose each image is" in capsys.readouterr().err
    np.save(tmp_path / "g.npy", np.ones((1, 8), np.float32))
    (tmp_path / "g.csv").write_text("name,identity\na,b\n")
    assert cli.main([*arguments, str(tmp_path / "g.npy")]) == 2
    assert "gallery must hold embeddings of this network, of 16 numbers, got 8" in capsys.readouterr().err
    (tmp_path / "g.csv").write_text("name,identity\n")
    assert cli.main([*arguments, str(tmp_path / "g.npy")]) == 2
    assert "must hold float [N, D] and N names" in capsys.readouterr().err
    (tmp_path / "g.csv").unlink()
    assert cli.main([*arguments, str(tmp_path / "g.npy")]) == 2
    assert "no g.csv or g.json beside it" in capsys.readouterr().err


def test_identify_reads_an_ijb_folder(trained, tmp_path, capsys) -> None:
    """Six templates of two photographs: three people in one gallery or the other, with a probe each."""
    folder, draw = tmp_path / "IJBC", np.random.default_rng(1)
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    media = []
    for image in range(12):
        pixels = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "loose_crop" / f"{image}.jpg")
        media.append(f"{image}.jpg {image // 2 + 1} {image}")
    lists = {"1N_gallery_G1": [(1, 7), (2, 8)], "1N_gallery_G2": [(3, 9)], "1N_probe_mixed": [(4, 7), (5, 8), (6, 9)]}
    (folder / "meta" / "ijbc_face_tid_mid.txt").write_text("\n".join(media))
    (folder / "meta" / "ijbc_template_pair_label.txt").write_text("1 4 1\n1 5 0\n")
    for name, rows in lists.items():
        text = "TEMPLATE_ID,SUBJECT_ID\n" + "".join(f"{t},{s}\n" for t, s in rows)
        (folder / "meta" / f"ijbc_{name}.csv").write_text(text)
    out = tmp_path / "out"
    assert cli.main(["identify", "--ijb", str(folder), "--checkpoint", str(trained), "--out", str(out)]) == 0
    assert "mean:\nclosed set: rank-1 " in capsys.readouterr().out
    numbers = json.loads((out / "identification.json").read_text())
    network = load_backbone(trained)[0]
    lengths = embed_images(network, [folder / "loose_crop" / f"{i}.jpg" for i in range(12)], unit=False)
    template = torch.nn.functional.normalize((lengths[0::2] + lengths[1::2]) / 2)
    first = [int((template[3 + k] @ template[:2].T).argmax()) == k for k in range(2)]
    assert numbers["1N_gallery_G1"]["rank"]["1"] == np.mean(first)
    assert numbers["1N_gallery_G2"]["rank"]["1"] == 1.0 and numbers["mean"]["num_mated"] == 3


def test_a_network_in_safetensors_serves_too(trained, faces, tmp_path, capsys) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert cli.main(["export", "--run", str(trained), "--to", str(tmp_path / "net.safetensors")]) == 0
    pair = [str(faces / "gallery" / "ann" / "0.jpg"), str(faces / "probes" / "bob" / "1.jpg")]
    shown = []
    for network in (trained, tmp_path / "net.safetensors"):
        capsys.readouterr()
        assert cli.main(["compare", *pair, "--checkpoint", str(network), "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out)["cosine"])
    assert shown[0] == pytest.approx(shown[1], abs=TOLERANCE)


def test_each_image_of_a_person_counts_alike() -> None:
    """So that a graph of unit embeddings answers as the network that it was made from."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    people = ["ann", "bob", "ann", "ann", "bob"]
    of_lengths, of_units = (
        gallery_of(NamedEmbeddings(embeddings, [str(i) for i in range(5)], people, []))
        for embeddings in (unit * torch.tensor([1.0, 3, 9, 0.1, 2])[:, None], unit)
    )
    assert of_lengths[1] == of_units[1] == ["ann", "bob"]
    torch.testing.assert_close(of_lengths[0], of_units[0])
    torch.testing.assert_close(of_units[0][1], torch.nn.functional.normalize(unit[1] + unit[4], dim=0))

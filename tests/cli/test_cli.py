"""The command line: what a user types, what comes back, and one line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attfc_cuda
from attfc_cuda import cli
from attfc_cuda.cli._train_form import USUAL, from_form, to_form
from attfc_cuda.ops.resources import cuda_report
from attfc_cuda.train import TrainConfig
from attfc_cuda.train import loop as train_loop
from attfc_cuda.train.log import read_log

TINY = ["--image-size", "16", "--batch-size", "8", "--embedding-dim", "16", "--device", "cpu", "--threads", "1"]
QUIET = ["--no-tensorboard", "--no-pictures"]
QUICK = ["--data", "procedural:16x4", "--steps", "3", "--verify-num-pairs", "20", *QUIET, *TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three training steps."""
    run = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", *QUICK, "--run", str(run)]) == 0
    return run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list of 16 pairs over 8 images of noise, in two folds, beside its images."""
    random = np.random.default_rng(0)
    for k in range(4):
        for i in range(2):
            (tmp_path / f"id{k}").mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"id{k}" / f"{i}.png")
    lines = [f"id{a}/0.png\tid{b}/1.png\t{int(a == b)}\t{a % 2}" for a in range(4) for b in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return tmp_path / "list.txt"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_training_leaves_a_run_folder_and_tells_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *QUICK, "--run", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for part in (
        "64 probe images of 16 identities",
        "AttFC with AdaSin",
        "step 3/3",
        "held-out: accuracy",
        "done: 3 steps",
    ):
        assert part in shown, part
    assert (tmp_path / "run" / "checkpoints" / "step_00000003.pt").is_file()
    kinds = [record["kind"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert kinds == ["start", "step", "verify", "cosines", "best", "end"]


def test_verify_prints_a_table_and_writes_json_and_pictures(
    trained: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["verify", "--checkpoint", str(trained), "--pairs", str(pairs), "--out", str(out), "--device", "cpu"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(r"list\s*│ small\s*│\s*16 │", shown)
    names = {"list_roc.png", "list_small_histogram.png", "list_small.json"}
    assert {p.name for p in out.iterdir()} == names
    numbers = json.loads((out / "list_small.json").read_text())
    assert numbers["num_pairs"] == 16 and numbers["num_folds"] == 2
    for name in names:
        assert name in shown.replace("\n", "")
    with Image.open(out / "list_roc.png") as picture:
        assert picture.width > 300


def test_verify_takes_a_checkpoint_file_and_made_pairs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained / "checkpoints" / "step_00000003.pt"
    arguments = ["verify", "--checkpoint", str(path), "--data", "procedural:12x3@500", "--num-pairs", "40"]
    assert cli.main([*arguments, "--no-flip", "--device", "cpu"]) == 0
    assert "held-out" in capsys.readouterr().out
    assert (trained / "verify" / "held-out_small.json").is_file()  # the default place: beside the checkpoints


def test_verify_judges_all_pairs_of_a_folder(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces, out = tmp_path / "faces", tmp_path / "out"
    faces.mkdir()
    for k in range(4):
        shutil.move(pairs.parent / f"id{k}", faces)
    (faces / "id3" / "2.png").write_bytes(b"no image")
    arguments = ["verify", "--backbone", "raw-pixels", "--data", str(faces), "--image-size", "16"]
    arguments += ["--out", str(out), "--far", "0.5,1e-5", "--scores", str(out / "scores.csv")]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "held-out: no TAR at FAR 1e-05, which needs at least 100,000 impostor pairs, there are 24" in shown
    assert "held-out: 1 images cannot be read and were left out" in shown
    numbers = json.loads((out / "held-out_raw-pixels.json").read_text())
    assert (numbers["num_genuine"], numbers["num_impostors"], numbers["all_pairs"]) == (4, 24, True)
    assert numbers["embedding"] == "pixels" and numbers["network"] is None and numbers["unreadable"] == 1
    point = numbers["at_far"]["0.5"]
    rows = np.genfromtxt(out / "scores.csv", delimiter=",", names=True)
    assert len(rows) == 28 and rows["same"].sum() == 4
    accepted = rows["similarity"] >= point["threshold"]
    assert accepted[rows["same"] == 0].sum() == point["false_accepts"] <= 12
    assert accepted[rows["same"] == 1].mean() == point["tar"]
    assert point["few_impostors"] is False and len(point["tar_interval"]) == 2


def test_scores_of_a_list_name_its_images(pairs: Path, tmp_path: Path) -> None:
    arguments = ["verify", "--backbone", "raw-pixels", "--pairs", str(pairs), "--image-size", "16"]
    assert cli.main([*arguments, "--out", str(tmp_path), "--scores", str(tmp_path / "scores.npz")]) == 0
    with np.load(tmp_path / "scores.npz") as scores:
        assert scores["a"][1] == str(pairs.parent / "id0" / "0.png") and scores["b"][1].endswith("id1/1.png")
        assert scores["same"].tolist() == [int(k // 4 == k % 4) for k in range(16)]
        assert scores["similarity"].dtype == np.float32


def test_insightface_rules_are_for_a_list_that_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "--backbone", "raw-pixels", "--data", "procedural:6x4", "--image-size", "16"]
    assert cli.main([*arguments, "--as", "insightface", "--out", str(tmp_path)]) == 0
    assert "As InsightFace counts" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "held-out_raw-pixels.json").read_text())
    assert numbers["num_genuine"] == numbers["num_impostors"] == 36 and not numbers["all_pairs"]


def test_raw_pixels_are_the_floor(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "verify",
        "--backbone",
        "raw-pixels",
        "--pairs",
        str(pairs),
        "--image-size",
        "16",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main(arguments) == 0
    assert "raw-pixels" in capsys.readouterr().out
    assert (tmp_path / "o" / "list_raw-pixels.json").is_file()


def test_a_saved_config_is_the_default_and_flags_override_it(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    assert cli.main(["train", "--config", str(trained / "config.json"), "--run", str(run), "--seed", "5"]) == 0
    config = TrainConfig.load(run / "config.json")
    assert (config.run.seed, config.dataset.data, config.optim.steps) == (5, "procedural:16x4", 3)


def test_resume_needs_no_other_flag(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *QUICK, "--run", str(run)]) == 0
    assert cli.main(["train", "--run", str(run), "--resume", "--steps", "5"]) == 0
    assert "done: 5 steps" in capsys.readouterr().out
    kinds = [(r["kind"], r["step"]) for r in read_log(run / "log.jsonl") if r["kind"] not in ("cosines", "best")]
    assert kinds == [("start", 0), ("step", 3), ("verify", 3), ("resume", 3), ("step", 5), ("verify", 5), ("end", 5)]


def test_info_prints_what_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert "eager" in capsys.readouterr().out


def test_kernels_prints_both_reports_or_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    row = dict.fromkeys(("kernel", "dtype", "tile"), "sweep") | dict.fromkeys(
        ("architecture", "dim", "registers", "spill_bytes", "shared_bytes", "mma_in_loop", "occupancy"), 1
    )
    report = pytest.importorskip("attfc_cuda.ops.resources.triton_report", reason="Triton is not installed")
    monkeypatch.setattr(report, "rows", lambda architectures: asked.append(architectures) or [row])
    monkeypatch.setattr(
        cuda_report, "compile_all", lambda nvcc, csrc, archs: asked.append((nvcc, csrc.name, archs)) or []
    )
    monkeypatch.setattr(shutil, "which", lambda name: f"/tools/{name}")
    assert cli.main(["kernels", "--architectures", "80", "90"]) == 0
    assert asked == [(80, 90), ("/tools/nvcc", "csrc", [80, 90])]
    shown = capsys.readouterr().out
    assert "occupancy" in shown and "tensor instr." in shown
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cli.main(["kernels"]) == 0
    assert "CUDA kernels left out: no nvcc on PATH" in capsys.readouterr().out
    assert cli.main(["kernels", "--architectures", "75"]) == 2
    assert "kernels: architectures must be among 80, 86, 89, 90, 100, 120, got 75" in capsys.readouterr().err


def test_demo_ends_with_a_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--run", str(tmp_path), "--identities", "20", "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "raw-pixels" in shown and "small, AttFC + AdaSin" in shown and "the demo took" in shown
    for name in ("training", "held-out_roc", "held-out_small-AttFC-AdaSin_histogram", "held-out_raw-pixels_histogram"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name
    numbers = json.loads((tmp_path / "held-out_small-AttFC-AdaSin.json").read_text())
    assert numbers["num_pairs"] == 640 * 639 // 2  # all pairs of 80 other identities


ERRORS = {
    "margin": (["train", *QUICK, "--margin", "arcfase"], "margins.build: name must be one of adasin"),
    "close margin": (["train", *QUICK, "--margin", "arcfase"], "got 'arcfase'; did you mean arcface?"),
    "close backbone": (["train", *QUICK, "--backbone", "iresnet5"], "got 'iresnet5'; did you mean iresnet50?"),
    "no data": (["train"], "train: data must be given, got none; --data FOLDER with a folder for each identity, or"),
    "no data to resume": (["train", "--resume", "--run", "/nowhere/run"], "must hold a step_*.pt file, got none"),
    "data": (["train", "--data", "/nowhere"], "FolderFaces: roots must be readable folders, got /nowhere"),
    "batch": (["train", *QUICK, "--batch-size", "65"], "AttentionLoader: batch_size must fit into an epoch of 64"),
    "capacity": (["train", *QUICK, "--capacity", "3"], "train: capacity must hold a whole batch, 8 centres"),
    "range": (["train", "--lr", "-1"], "train: lr must be above 0, got -1.0"),
    "config": (["train", "--config", "/nowhere.json"], "train: config must be a readable JSON file, got /nowhere.json"),
    "resume": (["train", *QUICK, "--resume"], "must hold a step_*.pt file, got none; start without --resume"),
    "device": (["train", *QUICK, "--device", "tpu9"], "train: device must be auto, cpu, cuda or cuda:N, got 'tpu9'"),
    "no checkpoint": (["verify", "--pairs", "x"], "verify: checkpoint must be given, got None; or use --backbone"),
    "missing checkpoint": (["verify", "--checkpoint", "no.pt", "--pairs", "x"], "no.pt must exist, got no such file"),
    "backbone": (["verify", "--backbone", "small", "--pairs", "x"], "verify: backbone must be raw-pixels or left out"),
    "pairs": (["verify", "--backbone", "raw-pixels"], "pairs must be given, or data, or suite, and only one"),
    "both": (["verify", "--backbone", "raw-pixels", "--pairs", "x", "--data", "y"], "verify: pairs must be given"),
    "far": (["verify", "--backbone", "raw-pixels", "--pairs", "x", "--far", "1e-3,2"], "far must be numbers between 0"),
    "scores": (["verify", "--backbone", "raw-pixels", "--pairs", "x", "--scores", "a.txt"], "scores must end in .npz"),
    "no list": (["verify", "--backbone", "raw-pixels", "--pairs", "no.txt"], "pairs must name existing pair lists"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_mistakes_are_one_line_and_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    line = one_line(capsys)
    assert line.startswith("attfc: ") and message in line
    assert "Traceback" not in line
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_missing_image_of_a_list_is_named(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pairs.parent / "id2" / "0.png").unlink()
    assert cli.main(["verify", "--backbone", "raw-pixels", "--pairs", str(pairs)]) == 2
    assert "id2/0.png" in one_line(capsys)


def test_lists_of_one_name_are_refused(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = pairs.parent / "id0" / pairs.name
    other.write_text(pairs.read_text())
    assert cli.main(["verify", "--backbone", "raw-pixels", "--pairs", f"{pairs},{other}"]) == 2
    assert "pairs must name lists with different file names" in one_line(capsys)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="lr must be above 0"):
        cli.main(["train", "--lr", "-1", "--debug"])
    monkeypatch.setenv("ATTFC_DEBUG", "1")
    with pytest.raises(ValueError, match="lr must be above 0"):
        cli.main(["train", "--lr", "-1"])


def test_an_unexpected_error_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("several\nlines")

    monkeypatch.setattr(train_loop, "join", broken)
    assert cli.main(["train", "--data", "procedural"]) == 2
    assert one_line(capsys) == "attfc: several lines (RuntimeError; run again with --debug to see where)"


@pytest.mark.parametrize("arguments", [["train", "--learning-rate", "1"], ["train", "--policy", "lru"], ["fit"], []])
def test_wrong_flags_exit_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "got 'trian'; did you mean train?"),
        (["identfy", "--gallery", "x"], "got 'identfy'; did you mean identify?"),
        (["train", "--epoch", "3"], "--epochs"),
        (["verify", "--num-pair", "3"], "--num-pairs"),
        (["train", "--policy", "fifoo"], "'fifo'"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and hint in shown.out + shown.err


def test_a_mistyped_setting_of_a_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"optim": {"epoch": 3}}')
    with pytest.raises(ValueError, match=r"got 'epoch'; did you mean epochs\?"):
        TrainConfig.load(tmp_path / "config.json")


def test_the_help_of_train_begins_with_the_usual_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    titles = re.findall(r"^\W*([a-z]+) options\W*$", shown, re.MULTILINE)
    assert titles[0] == "usual" and set(titles[1:]) == set(TrainConfig().to_dict())
    usual = shown.partition("usual options")[2].partition("dataset options")[0]
    flags = re.findall(r"^\W{0,2}--([a-z][a-z-]+)", usual, re.MULTILINE)
    assert flags[:2] == ["data", "run"] and [flag.replace("-", "_") for flag in flags if flag != "help"] == list(USUAL)


def test_a_form_holds_every_setting_and_gives_it_back() -> None:
    config = TrainConfig()
    config.head.margin, config.optim.lr, config.model.freeze = "arcface", 0.5, "conv1.*"
    config.run.resume, config.run.config, config.dataset.workers = True, Path("a.json"), 3
    assert from_form(to_form(config)) == config
    form = to_form(TrainConfig())
    assert sum(len(vars(part)) for part in vars(form).values()) == sum(
        len(vars(part)) for part in vars(TrainConfig()).values()
    )


def test_help_documents_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for name in (name for group in TrainConfig().to_dict().values() for name in group):
        match = re.search(rf"--{name.replace('_', '-')}\b(.{{0,200}})", shown)
        assert match and re.search(r"[a-z]{3,}.*\(default: ", shown[match.start() : match.start() + 500]), name


@pytest.mark.parametrize(
    ("signal_name", "code"), [pytest.param("SIGINT", 130, marks=pytest.mark.proof), ("SIGTERM", 143)]
)
def test_a_signal_ends_the_process_with_a_checkpoint(tmp_path: Path, signal_name: str, code: int) -> None:
    arguments = ["train", *QUICK, "--steps", "100000", "--log-every", "1", "--run", str(tmp_path / "run")]
    script = f"import sys; from attfc_cuda.cli import main; sys.exit(main({arguments!r}))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("step 2/"):
                process.send_signal(getattr(__import__("signal"), signal_name))
                break
        rest = process.stdout.read()
        assert process.wait(timeout=120) == code
    finally:
        process.kill()
    assert f"stopped by {signal_name} after step" in rest and "--resume" in rest
    saved = list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(saved) == 1
    assert torch.load(saved[0], weights_only=True)["step"] >= 2


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    script = (
        "import sys; from attfc_cuda import cli\n"
        f"try: code = cli.main({words})\n"
        "except SystemExit as stopped: code = stopped.code\n"
        "loaded = [name for name in ('torch', 'numpy', 'sklearn', 'matplotlib') if name in sys.modules]\n"
        "sys.exit(f'imported {loaded}' if loaded else code)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_the_first_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        first_words = " ".join((cli.command_module(name).Command.__doc__ or "").split()[:2])
        assert re.search(rf"{name}\s+{first_words}", shown), name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"attfc_cuda {attfc_cuda.__version__}\n"


def test_every_command_is_a_file_of_one_pattern() -> None:
    for name in cli.COMMANDS:
        module = cli.command_module(name)
        assert is_dataclass(module.Command) and callable(module.run), name
        assert cli.command_name(module) == name
    files = {path.stem.strip("_") for path in Path(cli.__file__).parent.glob("*.py")}
    assert files == {*cli.COMMANDS, "init", "main", "network", "train_form"}  # the last two: flags


def test_the_old_name_of_epochs_works_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["--passes", "3"], ["--passes=3"]):
        _, command = cli.parse(["train", *words])
        assert command.optim.epochs == 3.0
        assert one_line(capsys) == "attfc: --passes is now --epochs; the old name goes with the next release"
    (tmp_path / "config.json").write_text(json.dumps({"optim": {"passes": 4}}))
    with pytest.warns(DeprecationWarning, match="config optim.passes is now epochs"):
        _, command = cli.parse(["train", "--config", str(tmp_path / "config.json")])
    assert command.optim.epochs == 4.0

"""What a container of a few per cent learns against a full layer: one experiment, in pieces that can be interrupted.

    python examples/recipes/container_share.py draw --identities 20000             # share/train_20000.rec, held_out.rec
    python examples/recipes/container_share.py run --identities 20000 --seeds 0 1 2 --minutes 60
    python examples/recipes/report.py share/runs/20000_* --far 1e-4 --json results.json --plot share
    python examples/recipes/container_share.py ages --identities 20000             # of the centres that a step meets

Hard drawn faces (`--data procedural:...:hard`), 6 images of each identity; 1000 identities that no run trains on are
verified over all pairs of images. Every head sees the same images in the same order. `run` takes the rows one after the
other, leaves out those that have ended, goes on with one that was stopped, and stops at the next step, with a
checkpoint, when its minutes are over: call it again. Several may run at once, each with rows or seeds of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import container_slots

IMAGES, HELD_OUT, FIRST_HELD_OUT = 6, 1000, 2**20  # of each identity; identities, from far behind those trained on
SIDE, DIM, BATCH = 32, 128, 256
FULL_FC = ("--head", "fc", "--no-fuse-optimizer", "--lr", "0.1")
ATTFC = ("--head", "attfc", "--container-dtype", "float32")
FIVE = (*ATTFC, "--margin", "adasin", "--capacity-share", "0.05")
PUBLISHED = ("--scale", "64", "--m", "0.5", "--warmup", "0.25")  # with a long warm-up
FOUR_IMAGES = ("--gallery-size", "4")
NEAREST = ("--temperature", "0.1")  # of the gallery's images the centre is mostly the one nearest to the probe
TRIMMED = ("--margin-options", "trim=0.3")
SHARES = (0.5, 1, 5, 10, 50)  # per cent of the identities

ROWS: dict[str, tuple[str, ...]] = {
    "fc_arcface": (*FULL_FC, "--margin", "arcface"),
    "fc_adasin": (*FULL_FC, "--margin", "adasin"),
    "fc_adasin_trimmed": (*FULL_FC, "--margin", "adasin", *TRIMMED),
    "fc_adasin_positive_only": (*FULL_FC, "--margin", "adasin", "--margin-options", "negative_penalty=False"),
    "partial_fc_10": ("--head", "partial_fc", "--sample-rate", "0.1", *FULL_FC[2:], "--margin", "arcface"),
    **{
        f"attfc_adasin_{per_cent}": (*ATTFC, "--margin", "adasin", "--capacity-share", str(per_cent / 100))
        for per_cent in SHARES
    },
    "attfc_adasin_one_batch": (*ATTFC, "--margin", "adasin", "--capacity", str(BATCH)),
    "attfc_arcface_5": (*FIVE, "--margin", "arcface"),
    "attfc_curricularface_5": (*FIVE, "--margin", "curricularface"),
    "attfc_adasin_5_no_codes": (*FIVE, "--class-code", "0"),
    "attfc_adasin_50_no_codes": (*ATTFC, "--margin", "adasin", "--capacity-share", "0.5", "--class-code", "0"),
    "attfc_adasin_5_no_codes_momentum_996": (*FIVE, "--class-code", "0", "--encoder-momentum", "0.996"),
    "attfc_adasin_5_as_published": (*FIVE, *PUBLISHED),
    "fc_arcface_as_published": (*FULL_FC, "--margin", "arcface", *PUBLISHED),
    "attfc_adasin_5_gallery_steps_4": (*FIVE, "--gallery-steps", "4"),
    "attfc_adasin_5_nearest": (*FIVE, *NEAREST),
    "attfc_adasin_5_of_four": (*FIVE, *FOUR_IMAGES),
    "attfc_adasin_5_nearest_of_four": (*FIVE, *FOUR_IMAGES, *NEAREST),
    "attfc_adasin_5_trimmed": (*FIVE, *TRIMMED),
    "attfc_adasin_5_nearest_of_four_trimmed": (*FIVE, *FOUR_IMAGES, *NEAREST, *TRIMMED),
}
"""The rows by name: what of `attfc train` differs. Shares of less than four batches are one and the same run."""


def draw(folder: Path, identities: int, label_noise: float) -> None:
    """Draw the faces to train on and those to verify on, each once, into .rec files."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = f":label-noise={label_noise}" if label_noise else ""
    specs = {
        training_file(folder, identities, label_noise): f"procedural:{identities}x{IMAGES}:hard{noise}",
        folder / "held_out.rec": f"procedural:{HELD_OUT}x{IMAGES}@{FIRST_HELD_OUT}:hard",
    }
    for file, spec in specs.items():
        if not file.exists():
            attfc = [sys.executable, "-m", "attfc_cuda.cli"]
            subprocess.run([*attfc, "pack", spec, str(file), "--image-size", str(SIDE)], check=True)


def training_file(folder: Path, identities: int, label_noise: float) -> Path:
    """Where the faces to train on lie."""
    return folder / f"train_{identities}{f'_noise_{label_noise}' if label_noise else ''}.rec"


def command(folder: Path, row: str, seed: int, given: argparse.Namespace) -> list[str]:
    """The `attfc train` that starts or goes on with a run; empty for one that has ended."""
    faces = training_file(folder, given.identities, given.label_noise)
    run = folder / "runs" / f"{faces.stem.removeprefix('train_')}_{row}_{seed}"
    attfc = [sys.executable, "-m", "attfc_cuda.cli", "train"]
    if (run / "log.jsonl").is_file():
        if any(record["kind"] == "end" for record in read_log(run / "log.jsonl")):
            return []
        if any((run / "checkpoints").glob("step_*.pt")):
            return [*attfc, "--resume", "--run", str(run)]
    settings = {
        "data": faces, "image-size": SIDE, "embedding-dim": DIM, "batch-size": BATCH, "epochs": given.epochs,
        "verify-data": folder / "held_out.rec", "threads": 1, "seed": seed, "checkpoint-every": 500,
        "verify-every": -(-given.identities * IMAGES // BATCH), "run": run,
    }  # fmt: skip
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [*attfc, *flags, *ROWS[row], *given.flags, *(["--overwrite"] if run.exists() else [])]


def run(folder: Path, given: argparse.Namespace) -> None:
    """Train row after row until all have ended or the minutes are over."""
    until = time.monotonic() + 60 * given.minutes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for seed in given.seeds:
        for row in given.rows:
            line = command(folder, row, seed, given)
            if not line:
                continue
            print(*line, flush=True)
            process = subprocess.Popen(line, env=environment)
            try:
                code = process.wait(max(until - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # it saves, and says how to go on
                process.wait()
                return
            if code:
                raise SystemExit(code)


def ages(identities: int, epochs: int = 4) -> str:
    """A Markdown table of how old centres are, in steps, after some epochs of random batches, by the container's share;
    and of the probes' classes how many it holds from before. No training: ages depend on labels alone."""
    lines = [
        f"| share of {identities} | centres | 10 % are younger than | median | 90 % | oldest | own class held |",
        "| --- " * 7 + "|",
    ]
    rng = np.random.default_rng(0)
    for per_cent in SHARES:
        slots = container_slots(per_cent / 100, identities, BATCH)
        container = DynamicClassContainer(slots, 1, num_classes=identities, policy="refresh")
        for _ in range(epochs):
            order = torch.from_numpy(rng.permutation(np.repeat(np.arange(identities), IMAGES)))
            batches = order[: len(order) // BATCH * BATCH].split(BATCH)
            held = 0.0
            for labels in batches:
                held += float(container.lookup(labels)[1].float().mean()) / len(batches)
                container.enqueue(torch.ones(BATCH, 1), labels)
        steps = (container.age[container.labels >= 0] / BATCH).numpy()
        found = " | ".join(f"{age:.0f}" for age in np.quantile(steps, [0.1, 0.5, 0.9, 1.0]))
        lines.append(f"| {per_cent:g} % | {slots} | {found} | {held:.1%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Accuracy over container share, on hard drawn faces.",
        epilog="Behind -- come more flags of `attfc train`, for every row; give such runs a --folder of their own.",
    )
    parser.add_argument("what", choices=("draw", "run", "ages"))
    parser.add_argument("--folder", type=Path, default=Path("share"), help="where faces and runs lie")
    parser.add_argument("--identities", type=int, default=20000, help="identities to train on")
    parser.add_argument("--label-noise", type=float, default=0.0, help="share of the images under a wrong label")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="heads to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, to go on at the next call")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)  # argparse takes no positional arguments behind options
    given = parser.parse_args(words[:end])
    given.flags = words[end + 1 :]
    if given.what == "draw":
        draw(given.folder, given.identities, given.label_noise)
    elif given.what == "ages":
        print(ages(given.identities))
    else:
        run(given.folder, given)


if __name__ == "__main__":
    main()

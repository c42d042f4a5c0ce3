"""End to end: images/s of the demo's training with each head or setting, so that nobody believes a head-only number.

    python benchmarks/training.py                         # four heads, 100 steps each on the demo's drawn faces
    python benchmarks/training.py --markdown --output benchmarks/results/training.json
    python benchmarks/training.py --heads fc attfc --backbone iresnet18 --image-size 112
    python benchmarks/training.py --heads fc attfc --row "attfc, gallery of 1" "--gallery-size 1"
    python benchmarks/training.py --heads fc attfc --threads 1 --row "attfc, K 4" "--probes-per-identity 4"

--row takes any flags of `attfc train`. "of full FC's" is a row's images/s over those of the row `fc` of the same batch,
image size and backbone; "by CPU" the same from the CPU time of this process, which says more where others use the
machine too. (It counts no worker processes, and with several threads also those that wait for others.)

Each row trains in a fresh process through `attfc_cuda.train`: the same faces, batches, backbone, schedule and seed. A
step's time is split with the clock at four borders: into and out of `Objective.forward`, around the encoders inside it,
at the start of the backward pass, and where the gradient of the embeddings is complete, which is where the backbone's
own backward pass begins. So

    head     = forward of the objective without the encoders + backward pass down to the embeddings,
    gallery  = AttFC's gallery encoder: its forward pass and its update (the other heads have none),
    the rest = the backbone, loading, clipping, and the optimizer (a fused one of the centres is in "head").

On a GPU the borders wait for the device, which costs a little of what they measure. images/s counts probe images, those
with a gradient; "through an encoder" counts AttFC's gallery images as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402

from attfc_cuda.data import Batch  # noqa: E402
from attfc_cuda.demo import IDENTITIES, demo_config  # noqa: E402
from attfc_cuda.train import Objective, TrainConfig, train  # noqa: E402
from attfc_cuda.train.log import read_log  # noqa: E402
from attfc_cuda.train.objective import OBJECTIVES  # noqa: E402
from attfc_cuda.train.training import pick_device  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "full_fc_arcface.py"
TEXTBOOK = "full FC ArcFace, textbook"
HEADS = {**reports.TRAINED_HEADS, TEXTBOOK: ""}  # the textbook's is the script's own objective
SETTINGS = ("identities", "batch", "image_size", "backbone")
WARM_UP_SHARE = 0.2  # of the steps, at the start, that are not counted


class Clock:
    """Seconds of each part of each step, filled by the objective that `timed` makes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.head: list[float] = []
        self.gallery: list[float] = []
        self.encoder_images: list[int] = []
        self.cpu_at: list[float] = []  # CPU seconds of the process when a step's forward pass begins
        self._encoders: dict[str, float] = {}
        self._entered = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, name: str, encoder: torch.nn.Module) -> None:
        """Add up the time of the encoder's forward passes under `name`, and count their images."""

        def enter(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._entered = self.now()

        def leave(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._encoders[name] = self._encoders.get(name, 0.0) + self.now() - self._entered
            self._encoders["images"] = self._encoders.get("images", 0) + len(inputs[0])

        encoder.register_forward_pre_hook(enter)
        encoder.register_forward_hook(leave)

    def step(self, objective: Any, forward: Any, backbone: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The loss; its forward pass is booked, and its backward pass when it runs."""
        self._encoders, start = {}, self.now()
        self.cpu_at.append(time.process_time())
        begun: dict[str, float] = {}

        def follow(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            output.register_hook(lambda grad: self._book_backward(begun))

        output_hook = backbone.register_forward_hook(follow)
        loss = forward(objective, backbone, batch)
        output_hook.remove()
        inside = {key: self._encoders.get(key, 0) for key in ("backbone", "gallery", "images")}
        self.head.append(self.now() - start - inside["backbone"] - inside["gallery"])
        self.gallery.append(inside["gallery"])
        self.encoder_images.append(int(inside["images"]))
        loss.register_hook(lambda grad: begun.update(at=self.now()))
        return loss

    def _book_backward(self, begun: dict[str, float]) -> None:
        self.head[-1] += self.now() - begun["at"]


def timed(objective_type: type[Objective], clock: Clock) -> type[Objective]:
    """An objective type that does the same and keeps `clock`."""

    class Timed(objective_type):
        def __init__(self, backbone: torch.nn.Module, *rest: Any, **options: Any) -> None:
            super().__init__(backbone, *rest, **options)
            # Only now: the gallery encoder is a copy of the backbone, and must not copy the watch.
            clock.watch("backbone", backbone)
            if hasattr(self, "encoder"):
                clock.watch("gallery", self.encoder)

        def forward(self, backbone: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return clock.step(self, objective_type.forward, backbone, batch)

        def after_step(self, backbone: torch.nn.Module, momentum: float) -> None:
            start = clock.now()
            super().after_step(backbone, momentum)
            if hasattr(self, "encoder"):
                clock.gallery[-1] += clock.now() - start

    return Timed


def config_of(flags: str, given: argparse.Namespace, run: Path) -> TrainConfig:
    """The demo's training of `given.steps` steps, verified once at the end, with `flags` of attfc train on top."""
    config = demo_config(run, identities=given.identities)
    config.optim.steps = given.steps
    config.dataset.batch_size, config.dataset.image_size = given.batch, given.image_size
    config.model.backbone = given.backbone
    config.verify.verify_every, config.verify.verify_num_pairs = 0, given.pairs
    config.run.checkpoint_every, config.run.tensorboard, config.run.progress = 0, False, False
    config.run.pictures = False
    config.run.log_every, config.run.threads, config.run.device = 1, given.threads, given.device
    overwrite = config.run.overwrite
    config = tyro.cli(TrainConfig, args=shlex.split(flags), default=config, config=(tyro.conf.OmitArgPrefixes,))
    config.run.run, config.run.overwrite = run, overwrite
    return config


def measure_here(name: str, flags: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train under `flags` in this process; the row."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(flags, given, Path(folder) / "run")
        objective_type = runpy.run_path(str(EXAMPLE))["FullFC"] if name == TEXTBOOK else OBJECTIVES[config.head.head]
        clock = Clock(pick_device(config.run.device))
        outcome = train(config, timed(objective_type, clock))
        steps = [record for record in read_log(config.run.run / "log.jsonl") if record["kind"] == "step"]
    batch = config.dataset.batch_size
    if outcome.signal is not None:
        raise KeyboardInterrupt
    skipped = min(round(WARM_UP_SHARE * len(steps)), len(steps) - 2)
    seconds = [batch / record["images_per_s"] for record in steps][skipped:]
    total, counted = sum(seconds), len(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "head": name,
        "flags": flags,
        "identities": given.identities,
        "batch": batch,
        "image_size": config.dataset.image_size,
        "backbone": config.model.backbone,
        "images_per_s": batch * counted / total,
        "cpu_s_per_image": (clock.cpu_at[-1] - clock.cpu_at[skipped]) / (batch * (counted - 1)),
        "encoder_images_per_s": sum(clock.encoder_images[skipped : len(steps)]) / total,
        "head_share": sum(clock.head[skipped : len(steps)]) / total,
        "gallery_share": sum(clock.gallery[skipped : len(steps)]) / total,
        "head_median_s": statistics.median(clock.head[skipped : len(steps)]),
        **measure.spread(seconds),
        "peak_mib": peak,
        "peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20 if clock.device.type == "cuda" else None,
        "accuracy": next((result.accuracy for result in outcome.results.values()), None),
        "last_loss": steps[-1]["loss"],
        "steps": len(steps),
        "counted_steps": counted,
    }


def measure_fresh(name: str, flags: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--of", name, flags]
    for setting in ("steps", *SETTINGS, "pairs", "threads", "device"):
        if getattr(given, setting) is not None:
            command += [f"--{setting.replace('_', '-')}", str(getattr(given, setting))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training under {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = (
    "head",
    "images/s",
    "of full FC's",
    "CPU ms/image",
    "by CPU",
    "through an encoder/s",
    "step",
    "head alone",
    "gallery encoder",
    "peak memory",
    "accuracy",
    "flags",
)


def cells_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    peak = row["peak_mib"] if row["peak_gpu_mib"] is None else row["peak_gpu_mib"]
    same = [other for other in rows if all(other[setting] == row[setting] for setting in SETTINGS)]
    full_fc = next((other for other in same if other["head"] == "fc"), None)
    images, cpu = "images_per_s", "cpu_s_per_image"
    return [
        row["head"],
        f"{row['images_per_s']:.0f}",
        "-" if full_fc is None else f"{row[images] / full_fc[images]:.2f}",
        f"{row[cpu] * 1e3:.2f}",
        "-" if full_fc is None else f"{full_fc[cpu] / row[cpu]:.2f}",
        f"{row['encoder_images_per_s']:.0f}",
        reports.seconds_text(row["median_s"]),
        f"{row['head_share']:.1%} ({reports.seconds_text(row['head_median_s'])})",
        f"{row['gallery_share']:.1%}" if row["gallery_share"] else "-",
        reports.memory_text(peak),
        "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
        row["flags"] or "-",
    ]


def markdown_of(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells_of(row, rows) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("head", "flags") else "right")
    for row in rows:
        table.add_row(*cells_of(row, rows))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=None, help="default, without --row: all of them")
    parser.add_argument(
        "--row", nargs=2, action="append", metavar=("NAME", "FLAGS"), default=[],
        help="a row of your own: its name, and flags of attfc train in one word",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="3 or more; a fifth of them warms up")
    parser.add_argument("--identities", type=int, default=IDENTITIES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--backbone", default="small")
    parser.add_argument("--pairs", type=int, default=2000, help="of held-out identities, for the accuracy")
    reports.add_threads(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    reports.add_output(parser)
    parser.add_argument("--of", nargs=2, default=None, help=argparse.SUPPRESS)  # how fresh processes are called
    given = parser.parse_args(arguments)
    reports.check_output(parser, given)
    named = given.heads if given.heads is not None else [] if given.row else list(HEADS)
    given.rows = [(name, HEADS[name]) for name in named] + [tuple(row) for row in given.row]
    names = [name for name, _ in given.rows]
    if len(set(names)) < len(names):
        parser.error(f"--row must have names of their own, got {', '.join(names)}")
    for _, flags in given.rows:  # before the first row trains
        try:
            config_of(flags, given, Path("run")).check()
        except ValueError as wrong:
            parser.error(f"--row: {wrong}")
    if given.steps < 3:
        parser.error("--steps must be 3 or more")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if given.of:
        print(json.dumps(measure_here(*given.of, given)))
        return
    if given.threads:
        torch.set_num_threads(given.threads)  # for the environment; the processes set their own
    command = "python " + shlex.join(["benchmarks/training.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = {"schema": reports.TRAINING, "environment": measure.environment(), "command": command, "rows": []}
    for name, flags in given.rows:
        print(f"training {given.steps} steps under {name} ...", file=sys.stderr, flush=True)
        report["rows"].append(measure_fresh(name, flags, given))
        if given.output:
            reports.write(given.output, report)
    if given.markdown:
        print(markdown_of(report["rows"]))
    else:
        print_rows(report["rows"])
    if given.output:
        print(f"written: {given.output}")


if __name__ == "__main__":
    main()

"""End to end: images/s of the demo's training with each head, so that nobody believes a head-only number.

    python benchmarks/training.py                         # four heads, 100 steps each on the demo's drawn faces
    python benchmarks/training.py --markdown --output benchmarks/results/training.json

Each head trains in a fresh process through `attfc_cuda.train`: the same faces, batches, backbone, schedule and seed. A
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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from attfc_cuda.data import Batch
from attfc_cuda.demo import IDENTITIES, demo_config
from attfc_cuda.train import Objective, TrainConfig, train
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import OBJECTIVES
from attfc_cuda.train.training import pick_device

sys.path.insert(0, str(Path(__file__).parent))
import measure  # noqa: E402
import reports  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "full_fc_arcface.py"
TEXTBOOK = "full FC ArcFace, textbook"
HEADS = ("attfc", "fc", "partial_fc", TEXTBOOK)
WARM_UP_SHARE = 0.2  # of the steps, at the start, that are not counted


class Clock:
    """Seconds of each part of each step, filled by the objective that `timed` makes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.head: list[float] = []
        self.gallery: list[float] = []
        self.encoder_images: list[int] = []
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


def config_of(head: str, given: argparse.Namespace, run: Path) -> TrainConfig:
    """The demo's training under `head`, of `given.steps` steps, verified once at the end."""
    config = demo_config(run, identities=given.identities)
    config.head.head = "attfc" if head == TEXTBOOK else head
    config.optim.steps = given.steps
    config.dataset.batch_size, config.dataset.image_size = given.batch, given.image_size
    config.model.backbone = given.backbone
    config.verify.verify_every, config.verify.verify_num_pairs = 0, given.pairs
    config.run.checkpoint_every, config.run.tensorboard, config.run.progress = 0, False, False
    config.run.log_every, config.run.threads, config.run.device = 1, given.threads, given.device
    return config


def measure_here(head: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train under `head` in this process; its row."""
    objective_type = runpy.run_path(str(EXAMPLE))["FullFC"] if head == TEXTBOOK else OBJECTIVES[head]
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(head, given, Path(folder) / "run")
        clock = Clock(pick_device(config.run.device))
        outcome = train(config, timed(objective_type, clock))
        steps = [record for record in read_log(config.run.run / "log.jsonl") if record["kind"] == "step"]
    if outcome.signal is not None:
        raise KeyboardInterrupt
    skipped = min(round(WARM_UP_SHARE * len(steps)), len(steps) - 2)
    seconds = [given.batch / record["images_per_s"] for record in steps][skipped:]
    total, counted = sum(seconds), len(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "head": head,
        "images_per_s": given.batch * counted / total,
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


def measure_fresh(head: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--of", head]
    for name in ("steps", "identities", "batch", "image_size", "backbone", "pairs", "threads", "device"):
        if getattr(given, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training under {head} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = (
    "head",
    "images/s",
    "through an encoder/s",
    "step",
    "head alone",
    "gallery encoder",
    "peak memory",
    "accuracy",
)


def cells_of(row: dict[str, Any]) -> list[str]:
    peak = row["peak_mib"] if row["peak_gpu_mib"] is None else row["peak_gpu_mib"]
    return [
        row["head"],
        f"{row['images_per_s']:.0f}",
        f"{row['encoder_images_per_s']:.0f}",
        reports.seconds_text(row["median_s"]),
        f"{row['head_share']:.1%} ({reports.seconds_text(row['head_median_s'])})",
        f"{row['gallery_share']:.1%}" if row["gallery_share"] else "-",
        reports.memory_text(peak),
        "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
    ]


def markdown_of(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells_of, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "head" else "right")
    for row in rows:
        table.add_row(*cells_of(row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
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
    parser.add_argument("--of", choices=HEADS, default=None, help=argparse.SUPPRESS)  # how fresh processes are called
    given = parser.parse_args(arguments)
    reports.check_output(parser, given)
    if given.steps < 3:
        parser.error("--steps must be 3 or more")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if given.of:
        print(json.dumps(measure_here(given.of, given)))
        return
    if given.threads:
        torch.set_num_threads(given.threads)  # for the environment; the processes set their own
    command = " ".join(["python benchmarks/training.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = {"schema": "training/1", "environment": measure.environment(), "command": command, "rows": []}
    settings = {name: getattr(given, name) for name in ("identities", "batch", "image_size", "backbone", "pairs")}
    for head in given.heads:
        print(f"training {given.steps} steps under {head} ...", file=sys.stderr, flush=True)
        report["rows"].append({**measure_fresh(head, given), **settings})
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

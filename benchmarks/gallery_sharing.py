"""What AttFC's gallery costs, by how probes share it: CPU time of a training step against full FC's.

    python benchmarks/gallery_sharing.py                    # the demo's network and faces
    python benchmarks/gallery_sharing.py --backbone iresnet18 --image-size 112 --batch 16 --images 16 --identities 200

All settings train in one process, in turn: `--steps` of one, as many of the next, and again in the next round, so that
whatever else the machine does meets them alike; each counts with its fastest round, by the process's CPU time on one
thread. Every step is whole: loading, drawing the batch, forward, backward, optimizer, gallery encoder and its update.
`training.py` measures settings by the clock, each in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402

from attfc_cuda.data import FaceDataset  # noqa: E402
from attfc_cuda.demo import demo_config  # noqa: E402
from attfc_cuda.train import TrainConfig  # noqa: E402
from attfc_cuda.train import training as parts  # noqa: E402
from attfc_cuda.train.objective import OBJECTIVES  # noqa: E402
from attfc_cuda.train.process_group import Group  # noqa: E402

# Name, head, probes of an identity in a batch, steps that share a gallery.
SETTINGS = (
    ("full FC", "fc", 1, 1),
    ("AttFC, a gallery for each probe", "attfc", 1, 1),
    *((f"AttFC, --probes-per-identity {number}", "attfc", number, 1) for number in (2, 4, 8)),
    *((f"AttFC, --gallery-steps {number}", "attfc", 1, number) for number in (2, 4, 8)),
)
SCHEMA = "gallery_sharing/1"


def stepper(given: argparse.Namespace, head: str, together: int, steps: int, folder: Path) -> Callable[[], int]:
    """A function that takes a step of training and returns how many gallery images went through the encoder."""
    config = demo_config(folder, identities=given.identities)
    config.dataset.data = f"procedural:{given.identities}x{given.images}"
    config.dataset.batch_size, config.dataset.image_size = given.batch, given.image_size
    config.dataset.probes_per_identity, config.dataset.gallery_steps = together, steps
    config.model.backbone, config.head.head = given.backbone, head
    config.run.threads, config.run.device, config.verify.verify_num_pairs = 1, "cpu", 20
    training = parts.Training(config, OBJECTIVES[head])
    batches = training.batches()

    def step() -> int:
        batch = next(batches)
        training.objective(training.network, batch).backward()
        training.clip_gradients(config.optim.clip_norm or float("inf"))
        training.optimizer.step()
        training.after_step(0.99)
        training.optimizer.zero_grad(set_to_none=True)
        return batch.gallery.flatten(0, -4).shape[0]

    return step


def measure_all(given: argparse.Namespace, chosen: list[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    """A row for each setting."""
    with tempfile.TemporaryDirectory() as folder:
        # The faces of all settings are the same: drawn once.
        faces: list[FaceDataset] = []

        def load_once(config: TrainConfig, group: Group | None = None) -> FaceDataset:
            faces.extend([] if faces else [load(config, group)])
            return faces[0]

        load = parts.load_dataset
        with mock.patch.object(parts, "load_dataset", load_once):
            steppers = [stepper(given, *setting[1:], Path(folder)) for setting in chosen]
        rows: list[dict[str, Any]] = []
        for name, head, together, steps in chosen:
            rows.append({"name": name, "head": head, "probes_per_identity": together, "gallery_steps": steps})
            rows[-1] |= {"gallery_images": 0, "cpu_s": []}
        for step in steppers:  # warms up, over the steps that share a gallery
            for _ in range(given.steps):
                step()
        for _ in range(given.rounds):
            for row, step in zip(rows, steppers, strict=True):
                start = time.process_time()
                row["gallery_images"] += sum(step() for _ in range(given.steps))
                row["cpu_s"].append(time.process_time() - start)
    images = given.batch * given.steps
    for row in rows:
        row["gallery_images_per_probe"] = row.pop("gallery_images") / (images * given.rounds)
        row["cpu_s_per_image"] = min(row["cpu_s"]) / images
    for row in rows:
        row["of_full_fc"] = rows[0]["cpu_s_per_image"] / row["cpu_s_per_image"]
    return rows


def markdown_of(rows: list[dict[str, Any]]) -> str:
    lines = ["| setting | gallery images a probe | CPU ms an image | images/s of full FC's |", "| --- |" + " --- |" * 3]
    for row in rows:
        numbers = row["gallery_images_per_probe"], row["cpu_s_per_image"] * 1e3, row["of_full_fc"]
        lines.append(f"| {row['name']} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=800)
    parser.add_argument("--images", type=int, default=8, help="of an identity")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--backbone", default="small")
    parser.add_argument("--steps", type=int, default=8, help="of a setting in a round: all that share a gallery, 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="+", default=None, help="numbers of settings, full FC is number 0")
    reports.add_output(parser)
    given = parser.parse_args(arguments)
    reports.check_output(parser, given)
    chosen = [setting for number, setting in enumerate(SETTINGS) if given.only is None or number in {0, *given.only}]
    torch.manual_seed(0)
    rows = measure_all(given, chosen)
    print(markdown_of(rows))
    if given.output:
        asked = {name: getattr(given, name) for name in ("identities", "images", "batch", "image_size", "backbone")}
        reports.write(given.output, {"schema": SCHEMA, "environment": measure.environment(), **asked, "rows": rows})


if __name__ == "__main__":
    main()

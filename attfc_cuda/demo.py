"""What `make demo` runs: the whole path from drawn faces to a verified network in a few minutes on two cores."""

from __future__ import annotations

import time
from pathlib import Path

from attfc_cuda.evaluation import plot_training
from attfc_cuda.train import TrainConfig, train
from attfc_cuda.train.judge import RAW_PIXELS, Judgement, judge, load_backbone, print_table, write_files
from attfc_cuda.train.log import duration
from attfc_cuda.train.setup import load_dataset
from attfc_cuda.train.validation import verification_sets

PASSES = 12.0


def demo_config(run: Path, passes: float | None, seed: int) -> TrainConfig:
    """AttFC with AdaSin on 800 drawn identities at 64 x 64 pixels, verified on 80 others."""
    config = TrainConfig()
    config.dataset.data, config.dataset.image_size = "procedural:800x8", 64
    config.model.embedding_dim = 128
    config.optim.passes = PASSES if passes is None else passes
    config.verify.verify_num_pairs = 4000
    config.run.run, config.run.seed, config.run.overwrite = run, seed, True
    return config


def demo(run: Path = Path("runs/demo"), passes: float | None = None, seed: int = 0) -> list[Judgement] | None:
    """Train, verify beside the raw pixels, print the table and draw the pictures.

    Returns the rows of the table, or None when the training was interrupted.
    """
    start = time.perf_counter()
    config = demo_config(run, passes, seed)
    outcome = train(config)
    if outcome.signal is not None:
        return None
    sets = verification_sets(config, load_dataset(config))
    backbone, name = load_backbone(run)
    judgements = judge(RAW_PIXELS, None, sets) + judge(f"{name}, AttFC + AdaSin", backbone, sets)
    print_table(judgements, "Identities that the network has never seen")
    files = [run / "training.png", *write_files(judgements, run)]
    plot_training(run / "log.jsonl", files[0], title="Demo: AttFC + AdaSin on drawn faces")
    print("written:", *files, sep="\n  ")
    print(f"the demo took {duration(time.perf_counter() - start)} minutes")
    return judgements

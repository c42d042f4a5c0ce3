"""What `make demo` runs: the whole path from drawn faces to a verified network in a few minutes on two cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from attfc_cuda._deprecated import renamed_attributes, renamed_keyword
from attfc_cuda.train.config import TrainConfig

if TYPE_CHECKING:
    from attfc_cuda.evaluation.report import SetResult

IDENTITIES = 800
EPOCHS = 8.0
__getattr__ = renamed_attributes(__name__, {"PASSES": "demo.EPOCHS"})


@renamed_keyword("passes", "epochs")
def demo_config(run: Path, identities: int = IDENTITIES, epochs: float = EPOCHS, seed: int = 0) -> TrainConfig:
    """AttFC with AdaSin on drawn identities of 8 images at 64 x 64 pixels, verified on others not trained on.

    Args:
        run: Folder of the run; an earlier demo in it is to be replaced, another run is not.
        identities: Drawn identities to train on.
        epochs: Length of the run.
        seed: Of the run.
    """
    config = TrainConfig()
    _make_demo(config, identities, epochs)
    config.run.run, config.run.seed = run, seed
    config.run.overwrite = _is_demo(run)
    return config


def _is_demo(run: Path) -> bool:
    """Whether the run in the folder has the settings of a demo, and so may be replaced by another one."""
    try:
        then = TrainConfig.load(run / "config.json")
        count = int(then.dataset.data.removeprefix("procedural:").removesuffix("x8"))
    except ValueError:
        return False
    demo_of_then = TrainConfig()
    _make_demo(demo_of_then, count, then.optim.epochs)
    demo_of_then.run.run, demo_of_then.run.seed = then.run.run, then.run.seed
    demo_of_then.verify.verify_num_pairs = then.verify.verify_num_pairs  # demos have drawn pairs, and judged all
    return then.to_dict() == demo_of_then.to_dict()


def _make_demo(config: TrainConfig, identities: int, epochs: float) -> None:
    config.dataset.data, config.dataset.image_size = f"procedural:{identities}x8", 64
    config.model.embedding_dim = 128
    # Drawn faces are all of one kind, so that no direction sets a part of them apart: class codes only cost there.
    config.head.class_code = 0.0
    config.optim.epochs = epochs


def demo(config: TrainConfig) -> tuple[list[SetResult], int | None]:
    """Train, verify beside the raw pixels, print the table and draw the pictures into the run folder.

    Args:
        config: As `demo_config` makes it.

    Returns:
        The rows of the table and None; or, when a signal interrupted the training, no rows and the signal.

    Raises:
        ValueError: As `train` does.
    """
    from attfc_cuda.data import build_dataset
    from attfc_cuda.evaluation import plot_training
    from attfc_cuda.evaluation.report import RAW_PIXELS, evaluate_sets, write_files
    from attfc_cuda.evaluation.tables import print_table
    from attfc_cuda.train import load_backbone, train
    from attfc_cuda.train.log import duration
    from attfc_cuda.train.validation import verification_sets

    start, run = time.perf_counter(), config.run.run
    outcome = train(config)
    if outcome.signal is not None:
        return [], outcome.signal
    sets = verification_sets(config, build_dataset(config.dataset.data, config.dataset.image_size))
    backbone, name = load_backbone(run)
    results = evaluate_sets(RAW_PIXELS, None, sets) + evaluate_sets(f"{name}, AttFC + AdaSin", backbone, sets)
    print_table(results, "Verification on identities that the network has never seen")
    files = [run / "training.png", *write_files(results, run)]
    plot_training(run / "log.jsonl", files[0], title="Demo: AttFC + AdaSin on drawn faces")
    print("written:", *files, sep="\n  ")
    print(f"the demo took {duration(time.perf_counter() - start)} minutes")
    return results, None

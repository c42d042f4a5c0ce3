"""`attfc demo`: the whole path from drawn faces to a verified network in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attfc_cuda.demo import EPOCHS, IDENTITIES


@dataclass
class Command:
    """Train a small network on drawn faces for a few minutes, verify it on other drawn faces, and draw the results."""

    run: Path = Path("runs/demo")
    """Folder for the run, the table and the PNGs; an earlier demo in it is replaced, another run is left alone."""
    identities: int = IDENTITIES
    """Number of drawn identities to train on, with 8 images each."""
    epochs: float = EPOCHS
    """Length of the training in epochs."""
    seed: int = 0
    """Seed of initialisation, order, and augmentation."""


def run(command: Command) -> int:
    """Run the demo; exit code 0, or 128 + the number of the signal that stopped it."""
    from attfc_cuda.demo import demo, demo_config

    _, signal = demo(demo_config(command.run, command.identities, command.epochs, command.seed))
    return 0 if signal is None else 128 + signal

"""`attfc info`: what this installation can do on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Command:
    """Print what was built, what will be used here, and why not otherwise."""


def run(command: Command) -> int:
    """Print it; exit code 0."""
    from attfc_cuda.ops import backend

    print(backend.info())
    return 0

"""Images that are there twice, found by a hash of their stored bytes."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(content: bytes | memoryview) -> int:
    """64 bits that equal bytes share; among 10^8 images two different ones share them with probability 3e-4."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def duplicates_line(digests: np.ndarray, labels: np.ndarray) -> str:
    """A line for the start-up report. digests: uint64 [N]; labels: int64 [N]."""
    order = np.lexsort((labels, digests))
    content, owner = digests[order], labels[order]
    again = content[1:] == content[:-1]
    elsewhere = again & (owner[1:] != owner[:-1])
    line = f"duplicated images: {int(again.sum())}"
    if elsewhere.any():
        # Content is counted once here, however many identities hold it.
        shared = len(np.unique(content[1:][elsewhere]))
        line += f"; {shared} images stand under more than one identity"
    return line

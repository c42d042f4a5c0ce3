"""When so many images cannot be read that a run is learning from nothing."""

from __future__ import annotations

from attfc_cuda.data import Batch

# Batches over which the share of unreadable rows is averaged, about. Our choice: one bad image of a small batch weighs
# little, a data set that has gone is seen in the next batch, one of which a half has gone within a few.
MEMORY = 50


class UnreadableData(OSError):
    """Too many rows could not be read. The message names the share, the first image, and the checkpoint."""


class UnreadableRows:
    """The running share of a run's rows that could not be read.

    Args:
        limit: The largest share that is put up with, 0 to 1.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.share = limit, 0.0

    def add(self, batch: Batch) -> str | None:
        """Count the rows of a batch, on the CPU.

        Returns:
            What is wrong, where it is too much: the batch holds no readable row, or the share is above the limit.
        """
        rows = len(batch.labels) + len(batch.negative_labels)
        lost = int((batch.labels < 0).sum() + (batch.negative_labels < 0).sum())
        self.share += (lost / max(rows, 1) - self.share) / MEMORY
        if len(batch.labels) and bool((batch.labels < 0).all()):
            return f"none of the {len(batch.labels)} rows of a batch could be read"
        if lost and (self.share > self.limit):
            return f"{100 * self.share:.1f} % of the rows of late could not be read"
        return None

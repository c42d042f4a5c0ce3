"""Heads over several processes: what goes between them (`shards`), and their state on the disk (`checkpoint`)."""

from attfc_cuda.distributed.shards import Shards

__all__ = ["Shards"]

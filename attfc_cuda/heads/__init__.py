"""Heads: the module between embeddings and loss, with its own state and defaults."""

from attfc_cuda.heads.attfc import AttFC

__all__ = ["AttFC"]

"""Heads: the module between embeddings and loss, with its own state and defaults."""

from attfc_cuda.heads.attfc import AttFC
from attfc_cuda.heads.fully_connected import FullyConnected
from attfc_cuda.heads.partial_fc import PartialFC

__all__ = ["AttFC", "FullyConnected", "PartialFC"]

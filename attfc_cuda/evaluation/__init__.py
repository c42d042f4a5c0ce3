"""Verification: pair lists, embedding of images, metrics over folds, and plots."""

from attfc_cuda.evaluation.embed import embed_images, pair_similarity, raw_pixel_embeddings, verify_backbone
from attfc_cuda.evaluation.pairs import PairIndices, PairList, make_pairs, read_pairs
from attfc_cuda.evaluation.plots import plot_cosines, plot_histogram, plot_roc, plot_training
from attfc_cuda.evaluation.verification import VerificationResult, verify

__all__ = [
    "PairIndices",
    "PairList",
    "VerificationResult",
    "embed_images",
    "make_pairs",
    "pair_similarity",
    "plot_cosines",
    "plot_histogram",
    "plot_roc",
    "plot_training",
    "raw_pixel_embeddings",
    "read_pairs",
    "verify",
    "verify_backbone",
]

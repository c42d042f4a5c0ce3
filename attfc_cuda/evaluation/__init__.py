"""Verification and identification: lists and sets, embedding of images, metrics, templates, and plots."""

from attfc_cuda.evaluation.all_pairs import AllPairs, PairScores, verify_identities
from attfc_cuda.evaluation.bins import read_bin
from attfc_cuda.evaluation.embed import embed_images, pair_similarity, raw_pixel_embeddings, verify_backbone
from attfc_cuda.evaluation.identification import IdentificationResult, evaluate_identification, search
from attfc_cuda.evaluation.ijb import read_ijb
from attfc_cuda.evaluation.insightface_rules import InsightFaceCounts, count_as_insightface, nearest_tar_at_far
from attfc_cuda.evaluation.intervals import IdentityBootstrap, ImpostorSample, Interval
from attfc_cuda.evaluation.measure import Measured, measure_set, pair_bootstrap
from attfc_cuda.evaluation.pairs import PairIndices, PairList, make_pairs, read_pairs
from attfc_cuda.evaluation.plots import RocBand, plot_cosines, plot_histogram, plot_roc, plot_training
from attfc_cuda.evaluation.sets import IdentitySet, TemplateSet, VerificationSet
from attfc_cuda.evaluation.suite import SuiteEntry, find_suite
from attfc_cuda.evaluation.templates import template_embeddings, verify_templates
from attfc_cuda.evaluation.verification import OperatingPoint, VerificationResult, verify

__all__ = [
    "AllPairs",
    "IdentificationResult",
    "IdentityBootstrap",
    "IdentitySet",
    "ImpostorSample",
    "InsightFaceCounts",
    "Interval",
    "Measured",
    "OperatingPoint",
    "PairIndices",
    "PairList",
    "PairScores",
    "RocBand",
    "SuiteEntry",
    "TemplateSet",
    "VerificationResult",
    "VerificationSet",
    "count_as_insightface",
    "embed_images",
    "evaluate_identification",
    "find_suite",
    "make_pairs",
    "measure_set",
    "nearest_tar_at_far",
    "pair_bootstrap",
    "pair_similarity",
    "plot_cosines",
    "plot_histogram",
    "plot_roc",
    "plot_training",
    "raw_pixel_embeddings",
    "read_bin",
    "read_ijb",
    "read_pairs",
    "search",
    "template_embeddings",
    "verify",
    "verify_backbone",
    "verify_identities",
    "verify_templates",
]

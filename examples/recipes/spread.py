"""How the embeddings of a pair list lie: do all faces share a direction, how many directions do they use?

    python examples/recipes/spread.py runs/adasin_0 runs/fc_0 --root faces --pairs lists/celeba_dev_pairs.txt

For each run's network and pair list, on embeddings as they are and less their mean: mean and standard deviation of the
cosine of genuine and of impostor pairs, TAR at FAR 1e-2 over all pairs together, the length of the mean unit embedding
(0: they point everywhere, 1: all one way), and the effective number of dimensions, 1 / sum of squares of the
covariance's eigenvalues as shares of their sum. "Less their mean" needs many faces at once and is no way to verify one
pair: it tells how much of the loss in TAR is one shared direction.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda.evaluation import embed_images
from attfc_cuda.evaluation.build import from_lists
from attfc_cuda.train import load_backbone


def describe(embeddings: Tensor, a: Tensor, b: Tensor, same: Tensor) -> str:
    """One row of the table, for unit embeddings [N, D] and the pairs (a, b) with `same` [P] bool."""
    cosine = (embeddings[a] * embeddings[b]).sum(dim=1)
    genuine, impostor = cosine[same], cosine[~same]
    rate = (genuine > impostor.quantile(0.99)).float().mean()
    spectrum = torch.linalg.eigvalsh(torch.cov(embeddings.T)).clamp_min(0)
    dimensions = spectrum.sum() ** 2 / (spectrum**2).sum()
    kinds = " | ".join(f"{values.mean():.2f} ± {values.std():.2f}" for values in (genuine, impostor))
    return f"{kinds} | {rate:.3f} | {embeddings.mean(dim=0).norm():.2f} | {dimensions:.1f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How the embeddings of a pair list lie.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or checkpoints")
    parser.add_argument("--pairs", required=True, help="pair lists, separated by commas")
    parser.add_argument("--root", type=Path, help="folder the paths in the lists start from")
    options = parser.parse_args(arguments)
    print("| run | pairs | embeddings | genuine | impostor | TAR | mean's length | dimensions |\n" + "| --- " * 8 + "|")
    for run in options.runs:
        network, _ = load_backbone(run)
        for name, images, pairs in from_lists(options.pairs, options.root, network.image_size):
            embeddings = embed_images(network, images)
            ends = [torch.as_tensor(end) for end in (pairs.a, pairs.b, pairs.same)]
            centred = F.normalize(embeddings - embeddings.mean(dim=0), dim=1)
            for kind, values in (("as they are", embeddings), ("less their mean", centred)):
                print(f"| {run.name} | {name} | {kind} | {describe(values, *ends)}")


if __name__ == "__main__":
    main()

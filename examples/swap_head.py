"""Swap the head of your own training loop for AttFC: your backbone, data and optimizer stay as they are.

    python examples/swap_head.py [--steps 60]

The loop below is an ordinary one. The lines marked 1, 2 and 3 are all that the head needs; a fourth keeps the gallery
encoder following the backbone. The data here are drawn faces, so that the example runs anywhere.
"""

import argparse

import torch
from torch import nn

from attfc_cuda.data import AttentionLoader, ProceduralFaces
from attfc_cuda.heads import AttFC
from attfc_cuda.heads.momentum_encoder import MomentumEncoder


def main() -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    torch.manual_seed(0)

    # Your own network, data and optimizer.
    backbone = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.PReLU(32),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.PReLU(64),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 64), nn.BatchNorm1d(64),
    )  # fmt: skip
    faces = ProceduralFaces(num_identities=100, images_per_identity=6, image_size=32, cache=True)
    loader = AttentionLoader(faces, batch_size=32, gallery_size=2)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    gallery_encoder = MomentumEncoder(backbone, momentum=0.9)  # 1: a slow copy for the gallery images
    head = AttFC(dim=64, capacity=256, num_classes=100)  # 2: the head, instead of a layer of weights

    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            embeddings = backbone(batch.probe)
            gallery = gallery_encoder(batch.gallery.flatten(0, 1)).unflatten(0, batch.gallery.shape[:2])
            loss = head(embeddings, batch.labels, gallery)  # 3: instead of head(embeddings, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gallery_encoder.update(backbone)  # after each optimizer step
            losses.append(loss.item())
            if len(losses) % 10 == 0:
                print(f"step {len(losses):4d}  loss {losses[-1]:.3f}  cos {head.stats['positive_cosine']:.3f}")
            if len(losses) == steps:
                break
    return losses


if __name__ == "__main__":
    main()

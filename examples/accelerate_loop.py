"""Partial FC in a Hugging Face accelerate loop: the backbone is prepared, the head is not.

    python examples/accelerate_loop.py [--steps 40]                # needs: pip install accelerate
    accelerate launch --num_processes 2 examples/accelerate_loop.py

The backbone goes through `prepare` (DistributedDataParallel where there are several processes). The head does not: with
several processes each holds a part of the class centres (`Shards`), which nobody may average. Its optimizer runs inside
`accelerator.backward` (`fuse_optimizer`), so that no gradient of all centres exists. The data here are drawn faces, so
that the example runs anywhere.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from attfc_cuda import ArcFace, PartialFC, backbones
from attfc_cuda.data import ProceduralFaces, normalize_images
from attfc_cuda.distributed.shards import Shards


def main() -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU where there is a GPU too")
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=arguments.cpu)
    set_seed(0)

    faces = ProceduralFaces(num_identities=100, images_per_identity=6, image_size=32, cache=True)
    images = normalize_images(torch.stack([faces[index] for index in range(len(faces))]))
    data = torch.utils.data.TensorDataset(images, torch.from_numpy(faces.labels).long())
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    backbone = backbones.build("small", embedding_dim=64, image_size=32)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    backbone, optimizer, loader = accelerator.prepare(backbone, optimizer, loader)

    shards = Shards() if accelerator.num_processes > 1 else None
    head = PartialFC(64, len(faces.identities), sample_rate=0.5, margin=ArcFace(m=0.3, scale=32.0), shards=shards)
    head.to(accelerator.device)
    head.fuse_optimizer(lr=0.05, momentum=0.9, weight_decay=5e-4)

    losses: list[float] = []
    while len(losses) < arguments.steps:
        for batch, labels in loader:
            loss = head(backbone(batch), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == arguments.steps:
                break
    accelerator.print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()

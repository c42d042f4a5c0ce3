"""AttFC inside a LightningModule: the head is a submodule, the gallery encoder follows after each optimizer step.

    python examples/lightning_loop.py [--steps 40]                 # needs: pip install lightning

What a LightningModule needs of us is in `training_step` and `on_train_batch_end`. The head and the encoder are ordinary
submodules, so Lightning moves them to the device, and saves and restores container, margin and encoder with the rest.
The data here are drawn faces, so that the example runs anywhere.
"""

import argparse

import lightning
import torch
from torch import Tensor

from attfc_cuda import AdaSin, AttFC, MomentumEncoder, backbones
from attfc_cuda.data import AttentionLoader, Batch, ProceduralFaces


class FaceModule(lightning.LightningModule):
    """A backbone trained by AttFC."""

    def __init__(self, embedding_dim: int = 64, image_size: int = 32, capacity: int = 256) -> None:
        super().__init__()
        self.backbone = backbones.build("small", embedding_dim, image_size)
        self.gallery_encoder = MomentumEncoder(self.backbone, momentum=0.9)
        self.head = AttFC(embedding_dim, capacity, AdaSin(scale=32.0, m=0.3), policy="fifo", class_code=0.0)
        self.losses: list[float] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        gallery = self.gallery_encoder(batch.gallery.flatten(0, 1)).unflatten(0, batch.gallery.shape[:2])
        loss = self.head(self.backbone(batch.probe), batch.labels, gallery)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Batch, batch_index: int) -> None:
        self.gallery_encoder.update(self.backbone)  # by now the optimizer has moved the backbone
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The encoder's parameters have no gradient, the head has none at all: the backbone's are all there is to train.
        return torch.optim.SGD(self.backbone.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    lightning.seed_everything(0, verbose=False)
    module = FaceModule()
    faces = ProceduralFaces(num_identities=100, images_per_identity=6, image_size=32, cache=True)
    loader = AttentionLoader(faces, batch_size=32, gallery_size=2)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    print(f"loss {module.losses[0]:.3f} at first, {module.losses[-1]:.3f} after {len(module.losses)} steps")
    return module.losses


if __name__ == "__main__":
    main()

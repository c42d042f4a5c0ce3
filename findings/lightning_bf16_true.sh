#!/usr/bin/env bash
# lightning 2.6.6 (torch 2.14.1), Trainer(precision="bf16-true"). Expected: weights and images are bfloat16; a tensor
# that a step makes from Python numbers is float32 as always.
# Seen: while a training or validation step runs, torch's default type is bfloat16: torch.tensor([0.3001, 0.3005]),
# rand, zeros and linspace have 8 bits of precision, and float labels of the batch are rounded too (300 and 301 become
# equal at 300).
# It matters because verification is often done in validation_step: scores and thresholds collapse into ties, and
# accuracy and TAR at FAR are wrong; in on_validation_epoch_end the same line is float32 again, so a copy of it there
# gives other results.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 lightning==2.6.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

seen = {}


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def training_step(self, batch, index):
        return self.layer(batch[0]).float().square().mean()

    def validation_step(self, batch, index):
        seen["validation_step"] = torch.tensor([0.3001, 0.3005]).unique().float().tolist()
        seen["thresholds"] = len(torch.linspace(0, 1, 1001).unique())
        seen["labels"] = batch[1].unique().float().tolist()

    def on_validation_epoch_end(self):
        seen["on_validation_epoch_end"] = torch.tensor([0.3001, 0.3005]).unique().tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = DataLoader(TensorDataset(torch.randn(2, 4), torch.tensor([300.0, 301.0])), batch_size=2)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = pl.Trainer(max_epochs=1, precision="bf16-true", accelerator="cpu", num_sanity_val_steps=0, **quiet)
trainer.fit(Model(), data, data)
print("seen:", seen)
ties = len(seen["validation_step"]) == len(seen["labels"]) == 1 and seen["thresholds"] < 600
raise SystemExit(0 if ties and len(seen["on_validation_epoch_end"]) == 2 else 1)
PY

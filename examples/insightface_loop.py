"""InsightFace's training loop with its own head and with ours: the same losses, step for step.

    python examples/insightface_loop.py [--steps 50] [--margin 1.0 0.5 0.0] [--filter 0.0] [--dtype float64]

`TheirMargin` and `TheirHead` restate the mathematics of InsightFace's `losses.py` and `partial_fc_v2.py` on one
process: normalised embeddings and class weights, cosines of every class, the margin put into the target cosine without
gradient, scaled, cross entropy. `train` is the loop of its `train_v2.py`: one optimizer over backbone and head, the
backbone's gradients clipped, a polynomial schedule. Only the head that it is given changes. In your `train_v2.py`:

    from attfc_cuda.compat.insightface import PartialFC_V2      # instead of: from partial_fc_v2 import PartialFC_V2

The data here are drawn faces, so that the example runs anywhere, and the numbers float64: training is chaotic, and in
float32 any two orders of summation (their own head's on the same batch with its rows reversed, too) part ways after
some twenty steps at this learning rate. `--dtype float32` shows it.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attfc_cuda import backbones
from attfc_cuda.compat.insightface import PartialFC_V2
from attfc_cuda.data import ProceduralFaces, normalize_images

IDENTITIES, IMAGES, SIZE, DIM, BATCH = 24, 4, 16, 64, 16


class TheirMargin:
    """The target cosine bent in place, unseen by autograd: its gradient is that of the plain cosine, times s."""

    def __init__(self, s: float, m1: float, m2: float, m3: float, interclass_filtering_threshold: float = 0) -> None:
        self.s, self.m1, self.m2, self.m3 = s, m1, m2, m3
        self.interclass_filtering_threshold = interclass_filtering_threshold

    def __call__(self, cosines: Tensor, labels: Tensor) -> Tensor:
        rows = torch.arange(len(labels))
        if self.interclass_filtering_threshold > 0:
            keep = cosines.detach() <= self.interclass_filtering_threshold
            keep[rows, labels] = True
            cosines = cosines * keep
        with torch.no_grad():
            target = cosines[rows, labels]
            cosines[rows, labels] = target - self.m3 if self.m3 > 0 else torch.cos(torch.acos(target) + self.m2)
        return cosines * self.s


class TheirHead(nn.Module):
    """One weight row for each class, every logit stored."""

    def __init__(self, margin_loss: TheirMargin, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.normal(0, 0.01, (num_classes, embedding_size)))
        self.margin_loss = margin_loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-1, 1)
        return F.cross_entropy(self.margin_loss(cosines, labels), labels)


def train(
    make_head: Callable[..., nn.Module], margin_loss: TheirMargin, steps: int, dtype: torch.dtype = torch.float64
) -> list[float]:
    """The losses of `steps` steps with the head that `make_head(margin_loss, embedding_size, num_classes)` makes."""
    torch.manual_seed(0)
    faces = ProceduralFaces(IDENTITIES, IMAGES, SIZE, cache=True)
    images = normalize_images(torch.stack([faces[index] for index in range(len(faces))])).to(dtype)
    labels = torch.from_numpy(faces.labels).long()
    backbone = backbones.build("small", embedding_dim=DIM, image_size=SIZE).train().to(dtype)
    first_weight = torch.normal(0, 0.01, (IDENTITIES, DIM))
    order = torch.stack([torch.randperm(len(faces))[:BATCH] for _ in range(steps)])

    module_partial_fc = make_head(margin_loss, DIM, IDENTITIES)
    module_partial_fc.load_state_dict({"weight": first_weight})  # both heads name their weights so
    module_partial_fc.train().to(dtype)
    opt = torch.optim.SGD(
        [{"params": backbone.parameters()}, {"params": module_partial_fc.parameters()}],
        lr=0.1, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.PolynomialLR(opt, steps, power=2.0)

    losses: list[float] = []
    for chosen in order:
        loss = module_partial_fc(backbone(images[chosen]), labels[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 5)
        opt.step()
        opt.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses


def main() -> tuple[list[float], list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--margin", type=float, nargs=3, default=(1.0, 0.5, 0.0), metavar=("M1", "M2", "M3"))
    parser.add_argument("--filter", type=float, default=0.0, help="interclass_filtering_threshold")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    arguments = parser.parse_args()
    margin_loss = TheirMargin(64.0, *arguments.margin, arguments.filter)
    dtype = getattr(torch, arguments.dtype)
    theirs = train(TheirHead, margin_loss, arguments.steps, dtype)
    ours = train(PartialFC_V2, margin_loss, arguments.steps, dtype)
    for step in range(9, arguments.steps, 10):
        print(f"step {step + 1:4d}  theirs {theirs[step]:9.5f}  ours {ours[step]:9.5f}")
    print(f"largest difference {max(abs(a - b) for a, b in zip(theirs, ours, strict=True)):.1e}")
    return theirs, ours


if __name__ == "__main__":
    main()

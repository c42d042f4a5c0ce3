"""InsightFace's loop on two processes: our `PartialFC_V2` against their maths on one, and its file of each process."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
import torch.distributed as dist
from group import run
from torch import Tensor

from attfc_cuda import AdaSin
from attfc_cuda.compat.insightface import PartialFC_V2
from attfc_cuda.distributed import checkpoint as head_checkpoint
from attfc_cuda.distributed import split_state

EXAMPLE = Path(__file__).parents[2] / "examples" / "insightface_loop.py"
CLASSES, DIM, ROWS = 13, 16, 8  # 13: the second process has one class less


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight, embeddings = (torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (CLASSES, ROWS))
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    labels[-1] = labels[0]  # one class on both processes
    return weight, embeddings, labels


def step(head: torch.nn.Module, weight: Tensor, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    head.double().load_state_dict({"weight": weight})
    x = embeddings.clone().requires_grad_()
    loss = head(x, labels)
    (1.7 * loss).backward()
    return {
        "loss": loss.detach(),
        "embeddings": x.grad,
        "weight": head.weight.grad,
        "saved": head.state_dict()["weight"],
    }


def our_part() -> dict[str, Tensor]:
    weight, embeddings, labels = inputs()
    rank, count = dist.get_rank(), dist.get_world_size()
    margin_loss = runpy.run_path(str(EXAMPLE), run_name="example")["TheirMargin"](64.0, 1.0, 0.5, 0.0)
    head = PartialFC_V2(margin_loss, DIM, CLASSES)
    return step(head, *(part.chunk(count)[rank] for part in (weight, embeddings, labels)))


def test_two_processes_give_the_loss_and_gradients_of_their_maths_on_one() -> None:
    example = runpy.run_path(str(EXAMPLE), run_name="example")
    theirs = step(example["TheirHead"](example["TheirMargin"](64.0, 1.0, 0.5, 0.0), DIM, CLASSES), *inputs())
    ours = run(2, our_part)
    assert [len(part["weight"]) for part in ours] == [7, 6]
    for part in ours:
        torch.testing.assert_close(part["loss"], theirs["loss"], rtol=1e-12, atol=0)
    # DistributedDataParallel takes the mean over processes of what is the gradient of the whole here: hence twice.
    for key, factor in (("embeddings", 2), ("weight", 1), ("saved", 1)):
        whole = torch.cat([part[key] for part in ours])
        torch.testing.assert_close(whole, factor * theirs[key], rtol=1e-9, atol=1e-12)


def saved_and_loaded(folder: str) -> dict[str, Tensor]:
    torch.manual_seed(dist.get_rank())
    head = PartialFC_V2(AdaSin(), DIM, CLASSES)
    before = head.centers.detach().clone()
    kept = split_state.without_parts(head.state_dict(), head)
    head_checkpoint.save(head, folder)
    torch.nn.init.zeros_(head.centers)
    head_checkpoint.load(head, folder)
    return {"before": before, "after": head.centers.detach(), "kept": list(kept)}


def test_a_checkpoint_brings_each_process_its_own_centers(tmp_path: Path) -> None:
    parts = run(2, saved_and_loaded, str(tmp_path / "head"))
    whole = PartialFC_V2(AdaSin(), DIM, CLASSES)
    head_checkpoint.load(whole, tmp_path / "head")
    for part in parts:
        assert torch.equal(part["before"], part["after"]) and part["before"].any()
        assert part["kept"] == ["margin.t"]
    assert torch.equal(torch.cat([part["before"] for part in parts]), whole.centers)

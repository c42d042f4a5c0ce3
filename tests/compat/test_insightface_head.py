"""InsightFace's head and loop: the same losses with ours, its margins known by their attributes, its names kept."""

from __future__ import annotations

import copy
import math
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from attfc_cuda import AdaSin, ArcFace, CombinedMargin, CosFace
from attfc_cuda.compat.insightface import PartialFC_V2, as_margin

EXAMPLE = Path(__file__).parents[2] / "examples" / "insightface_loop.py"
MARGINS = {
    "arcface": (1.0, 0.5, 0.0),
    "arcface 0.3": (1.0, 0.3, 0.0),
    "normface": (1.0, 0.0, 0.0),
    "cosface": (1.0, 0.0, 0.4),
    "arcface, filtered": (1.0, 0.5, 0.0, 0.3),
    "cosface, filtered": (1.0, 0.0, 0.4, 0.3),
}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE), run_name="example")


class CombinedMarginLoss(torch.nn.Module):
    """What as_margin may look at: the attributes of InsightFace's class."""

    def __init__(self, s: float, m1: float, m2: float, m3: float, interclass_filtering_threshold: float = 0) -> None:
        super().__init__()
        self.s, self.m1, self.m2, self.m3 = s, m1, m2, m3
        self.interclass_filtering_threshold = interclass_filtering_threshold
        self.cos_m, self.sin_m = math.cos(m2), math.sin(m2)
        self.easy_margin = False


class Attributes(torch.nn.Module):
    def __init__(self, **attributes: float) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


# The two that are left out are checked a step at a time below.
@pytest.mark.parametrize("name", ["arcface", "arcface 0.3", "cosface", "arcface, filtered"])
def test_their_loop_gives_the_same_losses_with_our_head(example: dict[str, Any], name: str) -> None:
    margin_loss = example["TheirMargin"](64.0, *MARGINS[name])
    theirs = example["train"](example["TheirHead"], margin_loss, 50)
    ours = example["train"](PartialFC_V2, margin_loss, 50)
    assert len(ours) == 50
    assert max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) < 1e-4
    assert theirs[-1] < 0.7 * theirs[0]  # the curve falls: 50 equal numbers would prove little


def test_the_example_runs_as_it_says(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["insightface_loop.py", "--steps", "10", "--margin", "1.0", "0.0", "0.4", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", arguments)
    theirs, ours = example["main"]()
    assert len(theirs) == len(ours) == 10 and theirs[0] == pytest.approx(ours[0], rel=1e-5)
    assert "step   10" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", MARGINS.values(), ids=MARGINS.keys())
@pytest.mark.parametrize("rows", [1, 7])
def test_one_step_in_float32_loses_no_more_than_theirs(example: dict[str, Any], numbers: tuple, rows: int) -> None:
    """Loss and both gradients against theirs in float64, within twice of what theirs loses in float32.

    Theirs may lose nothing by luck, so that what rounding explains is allowed as well: target and negatives are
    cosines, each within four roundings, times the scale. The loss moves by as much as they do where it is large, and in
    proportion to itself where it is small; the gradients always in proportion.
    """
    margin_loss = example["TheirMargin"](64.0, *numbers)
    torch.manual_seed(rows)
    weight, embeddings = torch.randn(31, 16), torch.randn(rows, 16)
    labels = torch.randint(31, (rows,))
    labels[-1] = labels[0]
    embeddings[0] += 3 * F.normalize(weight[labels[0]], dim=0)  # a row whose target is not lost among the others

    def step(make: Callable, dtype: torch.dtype) -> list[torch.Tensor]:
        head = make(margin_loss, 16, 31)
        head.load_state_dict({"weight": weight})
        head.to(dtype)
        x = embeddings.to(dtype, copy=True).requires_grad_()
        loss = head(x, labels)
        (loss * 1.7).backward()
        return [loss.detach().double(), x.grad.double(), head.weight.grad.double()]

    truth, plain = step(example["TheirHead"], torch.float64), step(example["TheirHead"], torch.float32)
    rounding = 64.0 * 2 * 4 * torch.finfo(torch.float32).eps / 2
    for exact, theirs, ours in zip(truth, plain, step(PartialFC_V2, torch.float32), strict=True):
        size = exact.abs().max() if exact.ndim else exact.clamp(max=1.0)
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + rounding * size


def test_margins_are_known_by_their_attributes() -> None:
    arc = as_margin(CombinedMarginLoss(64, 1.0, 0.5, 0.0))
    assert type(arc) is ArcFace and (arc.m2, arc.scale, arc.gradient) == (0.5, 64.0, "straight_through")
    assert arc.interclass_filter is None
    cos = as_margin(CombinedMarginLoss(32, 1.0, 0.0, 0.4, 0.25))
    assert type(cos) is CosFace and (cos.m, cos.scale, cos.interclass_filter) == (0.4, 32.0, 0.25)
    combined = as_margin(CombinedMarginLoss(64, 1.35, 0.1, 0.0), gradient="exact")
    assert type(combined) is CombinedMargin and (combined.m1, combined.m2, combined.gradient) == (1.35, 0.1, "exact")
    older = as_margin(Attributes(scale=30.0, cos_m=math.cos(0.45), sin_m=math.sin(0.45), theta=0.0))
    assert type(older) is ArcFace and older.m2 == pytest.approx(0.45) and older.scale == 30.0
    assert as_margin(Attributes(s=64.0, m=0.4)).m == 0.4
    ours = AdaSin()
    assert as_margin(ours) is ours


def test_margins_that_have_no_effect_there_are_announced() -> None:
    with pytest.warns(UserWarning, match=r"m1 = 1.0 and m2 = 0.3 have no effect"):
        assert type(as_margin(CombinedMarginLoss(64, 1.0, 0.3, 0.2))) is CosFace
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_margin(CombinedMarginLoss(64, 1.0, 0.0, 0.4))


@pytest.mark.parametrize("wrong", [None, "arcface", Attributes(s=64.0), Attributes(m=0.5)])
def test_what_is_no_margin_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="as_margin: margin_loss must be InsightFace's CombinedMarginLoss"):
        PartialFC_V2(wrong, 8, 10)


def test_names_and_calls_of_train_v2() -> None:
    """The lines of train_v2.py that touch the module: constructor, .train(), parameters, state_dict, labels [B, 1]."""
    head = PartialFC_V2(CombinedMarginLoss(64, 1.0, 0.5, 0.0), 8, 10, 1, False)
    assert head.train() is head and head.weight is head.centers
    assert [tuple(p.shape) for p in head.parameters()] == [(10, 8)]
    assert (head.embedding_size, head.sample_rate) == (8, 1)
    x, labels = torch.randn(4, 8), torch.tensor([3, 1, 1, 9])
    plain = head(x, labels)
    column = labels.int()[:, None]
    assert torch.equal(head(x, column), plain) and column.shape == (4, 1)
    assert torch.equal(head(x[:1], labels[:1, None]), head(x[:1], labels[:1]))


def test_state_dicts_pass_both_ways(example: dict[str, Any]) -> None:
    margin_loss = example["TheirMargin"](64.0, 1.0, 0.5, 0.0)
    theirs, ours = example["TheirHead"](margin_loss, 8, 10), PartialFC_V2(margin_loss, 8, 10)
    assert list(ours.state_dict()) == ["weight"]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    ours.weight.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    # Nested, as in a module that holds it, and copied.
    holder = torch.nn.ModuleDict({"fc": copy.deepcopy(ours)})
    assert list(holder.state_dict()) == ["fc.weight"]
    holder.load_state_dict({"fc.weight": torch.ones(10, 8)})
    assert (holder["fc"].weight == 1).all() and not (ours.weight == 1).all()
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict({"weight": torch.ones(11, 8)})


def test_a_sample_of_the_classes_takes_part() -> None:
    torch.manual_seed(0)
    head = PartialFC_V2(CombinedMarginLoss(64, 1.0, 0.5, 0.0), 8, 50, sample_rate=0.2)
    head(torch.randn(6, 8), torch.arange(6)).backward()
    touched = head.weight.grad.any(dim=1)
    assert head.stats["fill"] == 10 and touched[:6].all() and touched.sum() <= 10


def test_fp16_decides_the_precision_whatever_autocast_says() -> None:
    torch.manual_seed(0)
    margin_loss = CombinedMarginLoss(64, 1.0, 0.5, 0.0)
    half, full = PartialFC_V2(margin_loss, 32, 20, fp16=True), PartialFC_V2(margin_loss, 32, 20)
    full.load_state_dict(half.state_dict())
    x, labels = torch.randn(8, 32), torch.arange(8)
    exact = full(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(full(x, labels), exact)
    rounded = half(x, labels)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=2e-3, atol=64 * 2.0**-11)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(x, labels), rounded)


def test_a_group_of_one_process_splits_nothing(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        head = PartialFC_V2(CombinedMarginLoss(64, 1.0, 0.5, 0.0), 8, 10)
        assert head.shards is None and head.weight.shape == (10, 8)
        assert head(torch.randn(4, 8), torch.arange(4)).isfinite()
    finally:
        dist.destroy_process_group()

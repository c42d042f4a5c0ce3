"""What every head asks of its margin and of its inputs, and the errors that say so."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from attfc_cuda import margins
from attfc_cuda._check import error, require_rows
from attfc_cuda.margins import Margin
from attfc_cuda.presets import ADDITIVE_MARGINS, DEFAULT, Preset


def checked_margin(head: str, margin: Margin | None, usual: str, preset: Preset = DEFAULT) -> Margin:
    """The margin; for None the usual one, by its name, with the preset's numbers.

    Raises:
        TypeError: for anything else.
    """
    if margin is None:
        return margins.build(usual, **margin_start(usual, preset))
    if not isinstance(margin, Margin):
        remedy = 'pass an instance, such as AdaSin() or margins.build("adasin")'
        raise error(head, "margin", "be a margins.Margin", repr(margin), remedy, kind=TypeError)
    return margin


def margin_start(name: str, preset: Preset) -> dict[str, float]:
    """What the margin of that name starts with by a preset, as keywords of its constructor."""
    start = {"scale": preset.scale}
    if preset.m is not None and name in ADDITIVE_MARGINS:
        start["m"] = preset.m
    return start


def require_count(function: str, argument: str, value: Any) -> None:
    """Demand a whole number of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise error(function, argument, "be a whole number of at least 1", repr(value), kind=TypeError) from None
    if number < 1:
        raise error(function, argument, "be at least 1", value)


def require_tensors(head: str, values: dict[str, Any]) -> None:
    """Demand tensors, before anything asks for their shape."""
    for argument, value in values.items():
        if not isinstance(value, Tensor):
            raise error(head, argument, "be a tensor", type(value).__name__, f"torch.as_tensor({argument})", TypeError)


def known_labels(labels: Tensor, num_classes: int | None) -> Tensor:
    """`labels` [B] with -1, which leaves a row out, in place of those at or above `num_classes` (None: there is no
    limit). They are an error where labels are checked; elsewhere they must at least come to nothing."""
    return labels if num_classes is None else torch.where(labels < num_classes, labels, -1)


def check_inputs(
    head: str, floats: dict[str, Tensor], integers: dict[str, tuple[Tensor, int]], device: torch.device
) -> None:
    """Demand floating dtypes, int64 labels [count], and the head's device; the caller checks the shapes of `floats`."""
    for argument, value in floats.items():
        if not value.is_floating_point():
            raise error(head, argument, "have a floating dtype", value.dtype, kind=TypeError)
    for argument, (value, count) in integers.items():
        if value.shape != (count,):
            raise error(head, argument, f"have shape [{count}]", list(value.shape))
        if value.dtype != torch.int64:
            raise error(head, argument, "have dtype torch.int64", value.dtype, f"{argument}.long()", TypeError)
    for argument, value in {**floats, **{name: value for name, (value, _) in integers.items()}}.items():
        if value.device != device:
            raise error(head, argument, f"be on the head's device {device}", value.device, "head.to(device)")


def require_finite(head: str, argument: str, value: Tensor, labels: Tensor) -> None:
    """Demand finite rows, except where the label is negative. The host waits for it."""
    finite = value.isfinite().flatten(1)
    require_rows(
        finite.all(dim=1) | (labels < 0),
        head,
        argument,
        "be finite (check_finite is on)",
        lambda row: f"{int((~finite[row]).sum())} values that are NaN or infinite in row {row}",
        "look at that image, at the learning rate and at the loss scale",
        wait=True,
    )


def shared_gallery(head: str, gallery: Tensor, gallery_rows: Tensor, dim: int) -> Tensor:
    """`gallery[gallery_rows]` [B, r, D], without gradient, of gallery [U, D] and gallery_rows [B, r].

    Raises:
        ValueError: for shapes, devices, and on the CPU for a row that is none of the gallery's; another device asserts.
        TypeError: for other than int64.
    """
    if gallery.ndim != 2 or gallery.shape[1] != dim:
        rule = f"have shape [U, {dim}] with gallery_rows"
        raise error(head, "gallery_embeddings", rule, list(gallery.shape))
    if gallery_rows.ndim != 2 or gallery_rows.shape[1] < 1:
        raise error(head, "gallery_rows", "have shape [B, r] with r >= 1", list(gallery_rows.shape))
    if gallery_rows.dtype != torch.int64:
        got, remedy = gallery_rows.dtype, "gallery_rows.long()"
        raise error(head, "gallery_rows", "have dtype torch.int64", got, remedy, kind=TypeError)
    if gallery_rows.device != gallery.device:
        raise error(head, "gallery_rows", f"be on the gallery's device {gallery.device}", gallery_rows.device)
    if not gallery.is_cuda:  # there the index itself is asserted
        count = len(gallery)
        require_rows(
            ((gallery_rows >= 0) & (gallery_rows < count)).all(dim=1),
            head,
            "gallery_rows",
            f"name rows of the {count} gallery_embeddings",
            lambda row: f"{gallery_rows[row].tolist()} in row {row}",
        )
    return gallery.detach()[gallery_rows]

"""The table of numbers that each row of a sweep brings along besides its embedding: `row_values`, one operand."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# What a row has that brings no number of its own: no target logit, nothing above the threshold.
_LEFT_OUT = {"target_logit": -math.inf, "threshold": math.inf}


class RowValues(NamedTuple):
    """One number for each of B rows, float32 (float64 beside float64 embeddings); None: left out.

    The order of the fields is that of the table's rows, in every backend: `RowValue` in csrc/sweep_inputs.h.

    Attributes:
        target_logit: [B], scale * T, to which the caller compares lse. Sets the precision, not the value, and counts in
            what `grad_tolerance` allows to leave out. Left out, or -inf in a row: every row, or that one, is exact.
        threshold: [B], the cosine above which a negative is hard: quad c^2 + lin c + const takes the place of c. Left
            out: nothing is modulated, and the next three must be left out too. +inf in a row: nothing is hard there.
        quad: [B], a coefficient; left out beside a threshold: 0.
        lin: [B], likewise.
        const: [B], likewise.
    """

    target_logit: Tensor | None = None
    threshold: Tensor | None = None
    quad: Tensor | None = None
    lin: Tensor | None = None
    const: Tensor | None = None

    def stack(self, embeddings: Tensor) -> Tensor:
        """The operand `row_values` [R, B] of torch.ops.attfc.*, contiguous.

        R says what there is, so that no kernel looks for what is not: 0 nothing, 1 the target logit alone, 5 all.

        Args:
            embeddings: [B, D], whose rows these are; says B, dtype and device.

        Gradient:
            To quad, lin and const, by autograd through torch.stack: theirs are rows 2 to 4 of the table's. None to
            target_logit and threshold.
        """
        target_logit = None if self.target_logit is None else self.target_logit.detach()
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        if self.threshold is None:
            if target_logit is None:
                return embeddings.new_empty((0, len(embeddings)), dtype=dtype)
            return target_logit[None].contiguous()
        given = self._replace(target_logit=target_logit, threshold=self.threshold.detach())._asdict()

        def left_out(name: str) -> Tensor:
            return embeddings.new_full((len(embeddings),), _LEFT_OUT.get(name, 0.0), dtype=dtype)

        return torch.stack([left_out(name) if value is None else value for name, value in given.items()])

    @classmethod
    def unstack(cls, table: Tensor) -> RowValues:
        """The counterpart of `stack`: views of the table's rows, None for those that are not there."""
        return cls(*table.unbind())


def is_modulated(table: Tensor) -> bool:
    """Whether a table has thresholds and coefficients."""
    return len(table) == len(RowValues._fields)

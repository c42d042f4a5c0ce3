"""The Partial FC head: trained class centres, of which a step meets its own classes and a random part of the rest."""

from __future__ import annotations

import functools
import math
import numbers

import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads.fully_connected import FullyConnected, Selection
from attfc_cuda.margins import Margin


class PartialFC(FullyConnected):
    """``loss = head(embeddings, labels)``: `FullyConnected` whose negatives are a fresh sample of the classes.

    Any margin works, including those that re-weight hard negatives (AdaSin, CurricularFace, MV-Softmax): each negative
    in the sample is re-weighted as in the full layer. In eval mode all classes take part. The sample is drawn on the
    device from torch's generator, without host synchronisation.

    Args:
        dim: length D of an embedding.
        num_classes: N.
        sample_rate: share of the classes, in (0, 1], that take part in a step: the classes of the batch always, the
            rest drawn evenly. At least as many take part as the batch has rows. With shards each process samples its
            own part.
        margin: as for `FullyConnected`.
        dtype: as for `FullyConnected`, as are all that follow, gradient and errors.
        shards: see there.
        check_labels: see there.
        check_finite: see there.
        grad_tolerance: see there.
        backend: see there.
        device: see there.

    Source:
        Partial FC (arXiv 2203.15565).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        sample_rate: float = 0.1,
        margin: Margin | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        shards: Shards | None = None,
        check_labels: bool = True,
        check_finite: bool = False,
        grad_tolerance: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            dim, num_classes, margin, dtype=dtype, shards=shards, check_labels=check_labels, check_finite=check_finite,
            grad_tolerance=grad_tolerance, backend=backend, device=device,
        )  # fmt: skip
        if not isinstance(sample_rate, numbers.Real):
            remedy = "the margin comes after it, or by name: margin=..."
            raise error(self._name, "sample_rate", "be a number in (0, 1]", repr(sample_rate), remedy, TypeError)
        if not 0 < sample_rate <= 1:
            raise error(self._name, "sample_rate", "lie in (0, 1]", sample_rate)
        self.sample_rate: float = sample_rate

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sample_rate={self.sample_rate}"

    def select(self, labels: Tensor) -> Selection:
        """The batch's own classes and a random sample of the others, in ascending order."""
        count = len(self.centers)
        size = min(count, max(math.ceil(self.sample_rate * count), len(labels)))
        whole = super().select(labels)
        if size == count or not self.training:
            return whole
        here, slot = whole.target_slot >= 0, whole.target_slot.clamp_min(0)
        key = torch.rand(count, device=labels.device)
        # The batch's own classes come first: 2 is above every random key. amax leaves a key alone for rows not here.
        key.scatter_reduce_(0, slot, torch.where(here, 2.0, 0.0), "amax")
        index = key.topk(size, sorted=False).indices.sort().values
        target_slot = torch.where(here, torch.searchsorted(index, slot), -1)
        sink = None if whole.gradient_sink is None else functools.partial(self._fused.apply, rows=index)
        return Selection(self.centers.index_select(0, index), self.classes[index], target_slot, sink)

"""attfc_cuda: train face recognition on millions of identities on one GPU.

Public names: the heads :class:`AttFC`, :class:`FullyConnected`, :class:`PartialFC` and their parts, the margins, and
the stateless functions they are made of.
They are imported at their first use, which needs torch and nothing else; the compiled extension is loaded at the first
call (``attfc info`` reports it).
"""

from typing import TYPE_CHECKING

from attfc_cuda import _deprecated
from attfc_cuda._lazy import lazy_attributes
from attfc_cuda._version import __version__

if TYPE_CHECKING:
    from attfc_cuda.functional import (
        MarginSoftmaxOutput,
        NegativeLogSumExp,
        generate_class_centers,
        inverse_norms,
        margin_softmax_loss,
        negative_logsumexp,
    )
    from attfc_cuda.heads import AttFC, FullyConnected, PartialFC
    from attfc_cuda.heads.container import DynamicClassContainer
    from attfc_cuda.heads.momentum_encoder import MomentumEncoder
    from attfc_cuda.margins import (
        AdaFace,
        AdaSin,
        ArcFace,
        CombinedMargin,
        CosFace,
        CurricularFace,
        MagFace,
        Margin,
        MVSoftmax,
        NormFace,
        SphereFace,
    )

_deprecated.install()

__all__ = [
    "AdaFace",
    "AdaSin",
    "ArcFace",
    "AttFC",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "DynamicClassContainer",
    "FullyConnected",
    "MVSoftmax",
    "MagFace",
    "Margin",
    "MarginSoftmaxOutput",
    "MomentumEncoder",
    "NegativeLogSumExp",
    "NormFace",
    "PartialFC",
    "SphereFace",
    "__version__",
    "generate_class_centers",
    "inverse_norms",
    "margin_softmax_loss",
    "negative_logsumexp",
]

__getattr__ = lazy_attributes(
    __name__, __all__, ("functional", "heads", "margins", "ops", "heads.container", "heads.momentum_encoder")
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

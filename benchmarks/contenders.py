"""The contenders of run.py by name, in the order of its table."""

from __future__ import annotations

from functools import partial

import heads
import oracle
import peers
from heads import NO_LOSS, SOFTMAX, Contender

_STORES = "stores all logits"
_SOFTMAX_ONLY = "plain softmax: no margin, centres not normalised"
_peer = partial(Contender, group="fc", products=3)
_softmax = partial(_peer, truth=oracle.trained(), margins=(SOFTMAX,))
_STRAIGHT = "straight_through"  # InsightFace does not differentiate its margin

_ALL = (
    Contender(
        "bare product", "product", heads.build_product, None, 1, margins=(NO_LOSS,), note="X @ W.T, nothing else"
    ),
    *(
        Contender(
            f"attfc {100 * share:.0f} %",
            f"attfc {100 * share:.0f} %",
            heads.build_attfc(share),
            oracle.attfc(share, "refresh", "before"),
            2,
            ours=True,
            share=share,
            margins=None,
        )
        for share in (0.1, 0.3)
    ),
    *(
        Contender(
            f"attfc {100 * share:.0f} %, eager",
            f"attfc {100 * share:.0f} %",
            peers.build_queue(share),
            oracle.attfc(share, "fifo", "after"),
            2,
            share=share,
            note=f"as its authors publish it, {_STORES}",
        )
        for share in (0.1, 0.3)
    ),
    Contender(
        "partial fc 10 %, fused",
        "partial_fc 10 %",
        heads.build_trained(0.1, fused=True),
        oracle.trained(0.1),
        3,
        ours=True,
        share=0.1,
        margins=None,
    ),
    Contender(
        "partial fc 10 %, eager",
        "partial_fc 10 %",
        peers.build_partial(0.1),
        oracle.trained(0.1, _STRAIGHT),
        3,
        share=0.1,
        note=f"as InsightFace, {_STORES}",
    ),
    Contender("full fc, fused", "fc", heads.build_trained(1, fused=True), oracle.trained(), 3, ours=True, margins=None),
    Contender(
        "full fc, torch.optim", "fc", heads.build_trained(1, fused=False), oracle.trained(), 3, ours=True, margins=None
    ),
    _peer(
        "full fc, eager",
        build=peers.build_full(peers.eager_loss),
        truth=oracle.trained(1, _STRAIGHT),
        note=f"as InsightFace, {_STORES}",
    ),
    _peer(
        "full fc, torch.compile",
        build=peers.build_full(peers.compiled_loss, compiles=True),
        truth=oracle.trained(1, _STRAIGHT),
        note=_STORES,
    ),
    _peer(
        "pytorch-metric-learning",
        build=peers.build_metric_learning,
        truth=oracle.trained(),
        package="pytorch_metric_learning",
        note=_STORES,
    ),
    _softmax("torch linear_cross_entropy", build=peers.build_full(peers.torch_fused), note=_SOFTMAX_ONLY),
    _softmax(
        "cut-cross-entropy",
        build=peers.build_full(peers.cut_cross_entropy),
        package="cut_cross_entropy",
        note=f"{_SOFTMAX_ONLY}; on a CPU its torch.compile path",
    ),
    _softmax(
        "liger-kernel",
        build=peers.build_full(peers.liger),
        package="liger_kernel",
        only_gpu=True,
        note=_SOFTMAX_ONLY,
    ),
    _softmax("quack-kernels", build=peers.build_full(peers.quack), package="quack", only_gpu=True, note=_SOFTMAX_ONLY),
)
CONTENDERS = {contender.name: contender for contender in _ALL}

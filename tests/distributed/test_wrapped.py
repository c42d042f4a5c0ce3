"""Heads inside DistributedDataParallel are refused where it breaks them; a momentum encoder follows through FSDP."""

from __future__ import annotations

import torch
from group import run
from wrapped_cases import followed_through_fsdp, wrapped_by_ddp


def test_heads_that_a_wrapper_breaks_are_refused() -> None:
    for found in run(2, wrapped_by_ddp):
        assert found["fused"].startswith(
            "FullyConnected: a head with a fused optimizer must stay outside of Distributed"
        )
        assert found["shards"].startswith("FullyConnected: a head with shards must stay outside of DistributedDataPara")
        assert found["attfc"].startswith("AttFC: a head must stay outside of DistributedDataParallel, which overwrites")
        assert found["attfc"].endswith("wrap the backbone alone, or pass broadcast_buffers=False")
        assert found["own optimizer"] == found["attfc without broadcast"] == found["outside"] == "worked"


def test_a_momentum_encoder_follows_a_source_that_fsdp_shards() -> None:
    for found in run(2, followed_through_fsdp):
        assert found["kinds"] == ["DTensor", "Tensor"]
        for ours, expected in zip(found["found"], found["expected"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)

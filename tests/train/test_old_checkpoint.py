"""A run that version 0.1.0 began goes on here, to the losses that it reached there.

old_checkpoint/ was written by that version: `attfc train` on eight drawn identities, stopped after 2 of 4 steps. The
network is "small" with a single block of 4 channels, so that the file stays small.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attfc_cuda.backbones import small
from attfc_cuda.train import TrainConfig, train
from attfc_cuda.train.log import read_log

THEN = Path(__file__).parent / "old_checkpoint"
# Of steps 3 and 4 there, on one thread. Another processor's convolutions round otherwise: they are in float32 and the
# two steps pass some 20 layers forth and back, so 1e-3 leaves room for 1e4 roundings, and a lost state is far outside.
LOSSES, RELATIVE = (8.231103897094727, 17.238080978393555), 1e-3


def test_a_run_of_the_last_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "STEM_CHANNELS", 4)
    monkeypatch.setattr(small, "STAGES", ((4, 1),))
    monkeypatch.setattr(small, "STRIDES_OF_TWO", 2)
    run = tmp_path / "run"
    shutil.copytree(THEN, run)
    with pytest.warns(DeprecationWarning, match="config optim.passes is now epochs"):
        config = TrainConfig.load(run / "config.json")
    config.run.run, config.run.resume = run, True
    assert train(config).step == 4
    steps = [record for record in read_log(run / "log.jsonl") if record["kind"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert [step["loss"] for step in steps[2:]] == pytest.approx(LOSSES, rel=RELATIVE)

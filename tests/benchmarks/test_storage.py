"""benchmarks/storage.py: a small run, what it writes, and that a sweep that is off is not timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from attfc_cuda.ops import backend

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import compare  # noqa: E402
import reports  # noqa: E402
import storage  # noqa: E402

pytestmark = pytest.mark.skipif(not backend.available("cpu"), reason="the CPU extension is not available")
SMALL = ["--batch", "8", "--centers", "600", "--dims", "16", "--threads", "1", "--rounds", "2"]


def test_a_small_run_and_its_comparison(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "storage.json"
    threads = torch.get_num_threads()
    try:
        storage.main([*SMALL, "--dtypes", "bfloat16", "float16", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    report = reports.read("test", output)
    assert len(report["rows"]) == len(storage.INPUTS) * 3 * 3
    for row in report["rows"]:
        assert row["x_float32"] == 1 or row["dtype"] != "float32"
        assert all(row[what] in shown for what in ("inputs", "what", "dtype")) and row["best_s"] > 0
    assert report["environment"]["cpu_capability"] in shown
    assert compare.main([str(output), str(output)]) == 0


def test_a_sweep_that_is_off_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = storage.operations

    def wrong(inputs, scale, m_rad):
        found = right(inputs, scale, m_rad)
        if inputs.embeddings.dtype == torch.bfloat16:
            run, result = found[storage.BOTH]
            found[storage.BOTH] = run, result * 3
        return found

    monkeypatch.setattr(storage, "operations", wrong)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(AssertionError, match="forward and gradient, bfloat16: off by"):
            storage.main(SMALL)
    finally:
        torch.set_num_threads(threads)

"""benchmarks/gallery_sharing.py: the gallery images that each setting embeds, and what is made of the times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gallery_sharing  # noqa: E402

SMALL = ["--identities", "16", "--batch", "16", "--image-size", "16", "--rounds", "1"]


@pytest.mark.proof
def test_a_small_run_counts_the_gallery_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, threads = tmp_path / "sharing.json", torch.get_num_threads()
    try:
        gallery_sharing.main([*SMALL, "--only", "1", "4", "7", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(output.read_text())
    rows = report["rows"]
    assert report["schema"] == "gallery_sharing/1" and report["batch"] == 16
    assert [row["name"] for row in rows][2:] == ["AttFC, --probes-per-identity 8", "AttFC, --gallery-steps 8"]
    # Of 8 images, all of which are probes in 1 or 8 batches, a gallery takes 3: each probe passes over itself.
    assert [row["gallery_images_per_probe"] for row in rows] == [0.0, 2.0, 3 / 8, 3 / 8]
    for row in rows:
        assert row["of_full_fc"] == rows[0]["cpu_s_per_image"] / row["cpu_s_per_image"] > 0
        assert row["cpu_s_per_image"] == min(row["cpu_s"]) / (16 * 8)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert printed[2].startswith("| full FC | 0.00 | ") and printed[2].endswith(" | 1.00 |") and len(printed) == 6

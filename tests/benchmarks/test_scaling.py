"""The line of benchmarks/scaling.py on planted times, and a small run of the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import measure  # noqa: E402
import scaling  # noqa: E402
import worker  # noqa: E402

CENTERS = np.array(scaling.CENTERS, dtype=float)


def rows_of(seconds, peaks=None, dtype: str = "float32") -> list[dict]:
    peaks = [10.0] * len(CENTERS) if peaks is None else peaks
    return [
        {
            "centers": int(s),
            "dtype": dtype,
            "batch": 384,
            "dim": 512,
            "median_s": float(t),
            "peak_mib": mib,
            "container_mib": s * 512 * 4 / 2**20,
        }
        for s, t, mib in zip(CENTERS, seconds, peaks, strict=True)
    ]


def test_a_line_is_found_again() -> None:
    line = scaling.fit(CENTERS, 2e-3 + 3.75e-6 * CENTERS)
    assert line.slope_s_per_center == pytest.approx(3.75e-6, rel=1e-9)
    assert line.intercept_s == pytest.approx(2e-3, rel=1e-6)
    assert line.r_squared == pytest.approx(1.0) and line.largest_deviation < 1e-6 and line.linear
    assert line.at(1e6) == pytest.approx(3.752)


def test_scatter_of_a_few_percent_is_linear_and_told() -> None:
    scatter = 1 + 0.05 * np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1])
    line = scaling.fit(CENTERS, (1e-3 + 3.75e-6 * CENTERS) * scatter)
    assert line.linear and 0.03 < line.largest_deviation < 0.08
    assert line.slope_s_per_center == pytest.approx(3.75e-6, rel=0.05)


@pytest.mark.parametrize("power", [0.85, 1.15])
def test_a_curve_is_called_not_linear_though_r_squared_is_high(power: float) -> None:
    line = scaling.fit(CENTERS, 3.75e-6 * CENTERS**power)
    assert not line.linear
    text = " ".join(scaling.verdicts(rows_of(3.75e-6 * CENTERS**power)))
    assert "NOT linear within 15%" in text


def test_small_containers_count_as_much_as_large_ones() -> None:
    """A fixed cost that only the smallest containers show must be found, not drowned by seconds."""
    line = scaling.fit(CENTERS, np.where(CENTERS == 1000, 3.0, 1.0) * 3.75e-6 * CENTERS)
    assert line.largest_deviation > 0.3 and not line.linear
    assert line.largest_deviation_from_10k < line.largest_deviation


def test_the_deviation_from_10k_looks_at_large_containers_alone() -> None:
    seconds = 3.75e-6 * CENTERS
    seconds[-1] *= 1.4
    line = scaling.fit(CENTERS, seconds)
    assert line.largest_deviation_from_10k == line.largest_deviation > 0.15


def test_flat_and_growing_memory() -> None:
    seconds = 3.75e-6 * CENTERS
    flat = " ".join(scaling.verdicts(rows_of(seconds, peaks=[5.0, 6.0, 8.0, *[11.0] * 6, 12.0])))
    assert ": flat within 2%" in flat and "11.0 to 12.0 MiB" in flat
    grows = " ".join(scaling.verdicts(rows_of(seconds, peaks=list(5 + CENTERS * 384 * 4 / 2**20))))
    assert "NOT flat within 2%" in grows
    unknown = scaling.verdicts(rows_of(seconds, peaks=[None] * len(CENTERS)))
    assert len(unknown) == 1


def test_each_dtype_has_its_line_and_two_points_have_none() -> None:
    rows = rows_of(3.75e-6 * CENTERS) + rows_of(2e-6 * CENTERS, dtype="bfloat16")
    assert set(scaling.fits_of(rows)) == {"float32", "bfloat16"}
    assert scaling.fits_of(rows[:2]) == {}


def test_the_figure_shows_points_line_and_memory() -> None:
    rows = rows_of(1e-3 + 3.75e-6 * CENTERS) + rows_of(2e-6 * CENTERS, dtype="bfloat16")
    figure = scaling.figure_of({"rows": rows, "environment": {"cpu": "test", "threads": 2, "torch": "2.14"}})
    time_axes, memory_axes = figure.axes
    lines = {line.get_label(): line for line in time_axes.lines}
    np.testing.assert_allclose(lines["float32, measured"].get_ydata(), 1e-3 + 3.75e-6 * CENTERS)
    (label,) = [label for label in lines if label.startswith("float32, line: R² 1.00000")]
    x, y = lines[label].get_data()
    np.testing.assert_allclose(y, 1e-3 + 3.75e-6 * x)
    memory = {line.get_label(): line.get_ydata() for line in memory_axes.lines}
    assert list(memory["float32, above the inputs"]) == [10.0] * len(CENTERS)
    assert memory["bfloat16, the container itself"][-1] == pytest.approx(1953.125)
    figure.draw_without_rendering()
    assert [text.get_text() for text in time_axes.get_xticklabels()][:4] == ["1k", "10k", "100k", "1M"]
    for axes in figure.axes:
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0


@pytest.mark.proof
def test_a_small_run_measures_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, to save the time of its imports; tests/benchmarks/test_run.py measures in fresh ones."""
    output, asked = tmp_path / "results" / "scaling.json", []
    monkeypatch.setattr(measure, "limit_memory", lambda further_bytes: None)
    monkeypatch.setattr(worker, "in_fresh_process", lambda job: asked.append(job) or worker.measured(job))
    arguments = ["--centers", "200", "64", "400", "--dtypes", "float32", "--batch", "16", "--dim", "32"]
    arguments += ["--seconds", "0.05", "--output", str(output), "--plot", str(tmp_path / "plot")]
    scaling.main(arguments)
    assert all(job.whole and job.contender == "attfc AdaSin, cold" for job in asked)
    report = json.loads(output.read_text())
    assert report["schema"] == "scaling/1" and report["command"].endswith(f"--plot {tmp_path / 'plot'}")
    assert [row["centers"] for row in report["rows"]] == [64, 200, 400]
    for row in report["rows"]:
        assert 0 < row["best_s"] <= row["p20_s"] <= row["median_s"] <= row["p80_s"] and row["x_product"] > 0
        assert row["peak_mib"] is None or 0 <= row["peak_mib"] < 100
        assert row["rounds"] >= 2 and row["measured_identities"] == row["centers"] and row["errors"]["loss"] < 1e-4
        assert row["container_mib"] == row["centers"] * 32 * 4 / 2**20
    assert set(report["fit"]["float32"]) >= {"slope_s_per_center", "intercept_s", "r_squared", "largest_deviation"}
    assert all((tmp_path / f"plot.{kind}").stat().st_size > 5000 for kind in ("png", "svg"))
    assert "within 15%" in capsys.readouterr().out


def test_a_point_that_fails_is_told_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, row = tmp_path / "scaling.json", rows_of(CENTERS)[0]

    def measured(job: worker.Job) -> dict:
        if job.problem.identities == 2000:
            return {"status": "out of memory", "reason": "the process was ended by SIGKILL"}
        return {**row, "status": "ok"}

    monkeypatch.setattr(worker, "in_fresh_process", measured)
    with pytest.raises(SystemExit, match="measuring 2000 centres in float32 failed: out of memory: the process"):
        scaling.main(["--centers", "1000", "2000", "--output", str(output)])
    assert [row["centers"] for row in json.loads(output.read_text())["rows"]] == [1000]


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scaling.json"
    output.write_text("{}")
    with pytest.raises(SystemExit):
        scaling.parse_arguments(["--output", str(output)])
    assert f"--output {output} exists: add --overwrite" in capsys.readouterr().err
    assert scaling.parse_arguments(["--output", str(output), "--overwrite"]).output == output


def test_a_wrong_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.parse_arguments(["--centers", "0"])
    assert "must be at least 1" in capsys.readouterr().err

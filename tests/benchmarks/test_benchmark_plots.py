"""The figures of benchmarks/plots.py: every contender's points, hollow and lost ones, and words on the axes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plots  # noqa: E402
import reports  # noqa: E402

IDENTITIES = {"ms1mv3": 93_431, "glint360k": 360_232, "webface42m": 2_059_906}


def row(contender: str, case: str, seconds: float | None = 1.0, mib: float | None = 100.0, **changes) -> dict:
    values = {
        "case": case,
        "identities": IDENTITIES[case],
        "batch": 384,
        "dim": 512,
        "contender": contender,
        "group": "fc",
        "ours": contender == "fc",
        "margin": "arcface",
        "dtype": "float32",
        "backend": "cpu" if contender == "fc" else None,
        "status": "ok",
        "time_scaled": False,
        "memory_scaled": False,
        "median_s": seconds,
        "peak_mib": mib,
    }
    return {**values, **changes}


def lost(contender: str, case: str, **changes) -> dict:
    return row(contender, case, None, None, status="out of memory", **changes)


def report(*rows: dict) -> dict:
    return {"schema": "heads/1", "environment": {"cpu": "test", "threads": 2, "torch": "2.14"}, "rows": list(rows)}


@pytest.fixture
def usual() -> dict:
    return report(
        row("fc", "ms1mv3", 0.5, 200.0),
        row("fc", "glint360k", 2.0, 800.0),
        row("fc", "webface42m", 12.0, 4600.0, time_scaled=True, memory_scaled=True),
        row("eager", "ms1mv3", 1.0, 900.0),
        row("eager", "glint360k", 4.0, 3600.0, time_scaled=True),
        lost("eager", "webface42m"),
        lost("compiled", "webface42m"),
        row("quack", "ms1mv3", None, None, status="unavailable"),
    )


def artists(figure, kind: str, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Label -> points of the artists of a kind in a panel."""
    lines = [line for line in figure.axes[panel].lines if (line.get_gid() or "").startswith(f"{kind}: ")]
    return {line.get_gid().split(": ", 1)[1]: list(zip(*line.get_data(), strict=True)) for line in lines}


def test_points_lie_where_they_were_measured(usual: dict) -> None:
    figure = plots.figure_of(usual, plots.MEMORY)
    assert artists(figure, "line")["fc"] == [(93_431, 200.0), (360_232, 800.0), (2_059_906, 4600.0)]
    assert artists(figure, "measured") == {
        "fc": [(93_431, 200.0), (360_232, 800.0)],
        "eager": [(93_431, 900.0), (360_232, 3600.0)],
    }
    assert artists(figure, "scaled") == {"fc": [(2_059_906, 4600.0)]}
    times = plots.figure_of(usual, plots.TIME)
    assert artists(times, "scaled") == {"fc": [(2_059_906, 12.0)], "eager": [(360_232, 4.0)]}


def test_scaled_points_are_hollow_and_ours_thick(usual: dict) -> None:
    lines = {line.get_gid(): line for line in plots.figure_of(usual, plots.MEMORY).axes[0].lines}
    assert lines["scaled: fc"].get_markerfacecolor() == "white"
    assert lines["measured: fc"].get_markerfacecolor() == lines["line: fc"].get_color()
    assert lines["line: fc"].get_linewidth() > 2 * lines["line: eager"].get_linewidth()
    assert lines["line: fc"].get_linestyle() == "-" and lines["line: eager"].get_linestyle() == "--"
    assert lines["measured: fc"].get_marker() != lines["measured: eager"].get_marker()


def test_out_of_memory_is_a_cross_above_all_data_and_ends_the_line(usual: dict) -> None:
    figure = plots.figure_of(usual, plots.MEMORY)
    axes = figure.axes[0]
    crosses = artists(figure, "out of memory")
    assert set(crosses) == {"eager", "compiled"}
    assert all(points[0][0] == 2_059_906 for points in crosses.values())
    highest = axes.transLimits.transform(axes.transScale.transform([(2_059_906, 4600.0)]))[0, 1]
    assert all(highest < points[0][1] < 1 for points in crosses.values())
    assert max(x for x, _ in artists(figure, "line")["eager"]) == 360_232
    # Side by side, not on each other.
    figure.draw_without_rendering()
    lines = [line for line in axes.lines if (line.get_gid() or "").startswith("out of memory")]
    places = {tuple(line.get_transform().transform(line.get_xydata())[0].round(1)) for line in lines}
    assert len(places) == 2


def test_axes_are_logarithmic_and_in_words(usual: dict) -> None:
    memory, time = (plots.figure_of(usual, quantity).axes[0] for quantity in (plots.MEMORY, plots.TIME))
    assert memory.get_xscale() == memory.get_yscale() == "log"
    for axes in (memory, time):
        axes.figure.draw_without_rendering()
        assert [text.get_text() for text in axes.get_xticklabels()] == ["93k", "360k", "2.06M"]
    assert "1 GiB" in [text.get_text() for text in memory.get_yticklabels()]
    assert {"1 s", "10 s"} <= {text.get_text() for text in time.get_yticklabels()}


def test_the_legend_names_everyone_shown_and_lies_below_the_panels(usual: dict) -> None:
    figure = plots.figure_of(usual, plots.MEMORY)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["fc", "eager", "compiled"] and "quack" not in labels
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= figure.axes[0].get_tightbbox().y0 and legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    titles = [axes.title for axes in figure.axes]
    assert all(figure.bbox.x0 <= title.get_window_extent().x0 for title in titles)


def test_a_panel_for_each_dtype_and_batch() -> None:
    rows = [
        row("fc", case, dtype=dtype, batch=batch)
        for case in IDENTITIES
        for dtype in ("float32", "bfloat16")
        for batch in (128, 384)
    ]
    figure = plots.figure_of(report(*rows), plots.TIME)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{dtype}, batch {batch}, dim 512" for batch in (128, 384) for dtype in ("float32", "bfloat16")
    ]


def test_margin_and_backend_are_named_only_where_they_tell_lines_apart() -> None:
    rows = [
        row("fc", "ms1mv3", 1.0),
        row("fc", "ms1mv3", 2.0, margin="adasin"),
        row("fc", "ms1mv3", 3.0, backend="reference"),
        row("eager", "ms1mv3", 4.0),
    ]
    lines = artists(plots.figure_of(report(*rows), plots.TIME), "line")
    assert set(lines) == {"fc, arcface, cpu", "fc, adasin, cpu", "fc, arcface, reference", "eager"}


def test_a_peer_without_margin_says_so() -> None:
    rows = [row("fc", "ms1mv3"), row("torch", "ms1mv3", margin="none (softmax)")]
    assert set(artists(plots.figure_of(report(*rows), plots.TIME), "line")) == {"fc", "torch, no margin"}


def test_two_heads_of_ours_in_a_group_differ_by_their_lines() -> None:
    rows = [
        row("fc", "ms1mv3"),
        row("fc, torch.optim", "ms1mv3", ours=True),
        row("attfc", "ms1mv3", ours=True, group="a"),
    ]
    lines = {line.get_gid(): line for line in plots.figure_of(report(*rows), plots.TIME).axes[0].lines}
    one, two, other = (lines[f"line: {name}"] for name in ("fc", "fc, torch.optim", "attfc"))
    assert one.get_color() == two.get_color() != other.get_color()
    assert one.get_linestyle() == other.get_linestyle() == "-" and two.get_linestyle() == "--"


def test_what_a_lost_head_would_need_is_not_drawn() -> None:
    needs = row("eager", "webface42m", None, 10_000_000.0, status="out of memory")
    figure = plots.figure_of(report(row("fc", "ms1mv3"), needs), plots.MEMORY)
    assert artists(figure, "line")["eager"] == [] and list(artists(figure, "out of memory")) == ["eager"]
    assert figure.axes[0].get_ylim()[1] < 1000


def test_twelve_crosses_stay_in_their_band() -> None:
    rows = [row("fc", case, seconds) for case, seconds in zip(IDENTITIES, (0.1, 1.0, 100.0), strict=True)]
    rows += [lost(f"peer {k}", "webface42m") for k in range(12)]
    figure = plots.figure_of(report(*rows), plots.TIME)
    axes = figure.axes[0]
    top = axes.transLimits.transform(axes.transScale.transform([(2_059_906, 100.0)]))[0, 1]
    heights = [points[0][1] for points in artists(figure, "out of memory").values()]
    assert len(heights) == 12 and min(heights) > top and max(heights) < 1


def test_a_report_that_has_only_begun_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "RESOLUTION_DPI", 40)
    paths = plots.draw(report(row("fc", "ms1mv3")), tmp_path / "deep" / "benchmark")
    assert [path.name for path in paths] == [
        f"benchmark_{name}.{kind}" for name in ("memory", "time") for kind in ("png", "svg")
    ]
    assert all(path.stat().st_size > 5000 for path in paths)
    first = [path.read_bytes() for path in paths[:2]]
    again = plots.save(plots.figure_of(report(row("fc", "ms1mv3")), plots.MEMORY), tmp_path / "benchmark_memory")
    assert [path.read_bytes() for path in again] == first


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="plots: rows must hold a measurement, got 1 rows"):
        plots.figure_of(report(lost("fc", "ms1mv3")), plots.TIME)


def test_the_command_draws_a_file_and_refuses_another_benchmarks(
    tmp_path: Path, usual: dict, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "RESOLUTION_DPI", 40)
    good, other = tmp_path / "heads.json", tmp_path / "scaling.json"
    good.write_text(json.dumps(usual))
    plots.main([str(good), "--prefix", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.glob("out*")) == sorted(
        f"out_{name}.{kind}" for name in ("memory", "time") for kind in ("png", "svg")
    )
    other.write_text(json.dumps({"schema": "scaling/1", "environment": {}, "rows": []}))
    with pytest.raises(SystemExit) as stopped:
        plots.main([str(other)])
    assert stopped.value.code == 2 and "must be of schema heads/1, got 'scaling/1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1"), (999, "999"), (1500, "1.5k"), (93_431, "93k"), (360_232, "360k"), (999_900, "1M"), (2_059_906, "2.06M")],
)
def test_counts_in_words(count: int, text: str) -> None:
    assert reports.count_text(count) == text


def test_sizes_and_times_in_words() -> None:
    sizes = {0.5: "512 KiB", 0.9766: "1000 KiB", 1: "1 MiB", 1000: "1000 MiB", 1024: "1 GiB", 1.5 * 2**20: "1.5 TiB"}
    assert {mib: reports.memory_text(mib) for mib in sizes} == sizes
    times = {4.2e-3: "4.2 ms", 0.9999: "1 s", 123.4: "123 s", 2e-5: "20 µs", 0.25: "250 ms"}
    assert {seconds: reports.seconds_text(seconds) for seconds in times} == times

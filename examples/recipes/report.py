"""Tables, JSON and the container-size plot from run folders.

    python examples/recipes/report.py runs/adasin_* runs/fc_*  # a row for each recipe, over its seeds
    python examples/recipes/report.py runs/* --json results.json  # every run's numbers
    python examples/recipes/report.py runs/cap*_0 runs/fc_0 --plot container_size  # container_size.png and .svg
    python examples/recipes/report.py share/runs/* --far 1e-4  # the true accept rate at another false accept rate

Runs whose settings differ in nothing but the seed form a row; the row is named after the folders without `_<seed>`.
Read are each run's `log.jsonl`: settings, the last verification on each pair list, the training time. Behind a rate of
a single run stands the interval over identities that holds 95 % of it, where the identities are known.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attfc_cuda.evaluation.plots import COLORS
from attfc_cuda.train.log import read_log

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2, "fp16": 2}
TEXTBOOK = re.compile(r"^head .*class weights", re.MULTILINE)  # the start-up report of examples/full_fc_arcface.py


def read_run(folder: Path) -> dict[str, Any] | None:
    """Name, settings, head memory, time and last verification of one run; None while it is not finished."""
    records = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    end = next((r for r in records if r["kind"] == "end"), None)
    if end is None:
        return None
    config = records[0]["config"]
    numbers = ("accuracy", "accuracy_std", "auc", "eer", "tar_at_far", "at_far")
    verification = {r["name"]: {k: r[k] for k in numbers if k in r}
                    for r in records if r["kind"] == "verify" and r["step"] == end["step"]}  # fmt: skip
    last = [r for r in records if r["kind"] == "step"][-1]
    report = records[0]["report"]
    head = "textbook" if TEXTBOOK.search(report) else config["head"]["head"]
    kept = int(last["fill"]) if head == "attfc" else trained_centers(report)
    # Partial FC keeps more than it meets in a step; the textbook's head meets all and does not log how many.
    centers = int(last.get("fill", kept))
    return {
        "name": folder.name,
        "head": head,
        "seed": config["run"]["seed"],
        "config": {group: config[group] for group in ("dataset", "model", "head", "optim")},
        "centers": centers,
        "head_mib": head_bytes(config, head, kept) / 2**20,
        "steps": end["step"],
        "training_s": round(end["seconds"], 1),
        "positive_cosine": last["positive_cosine"],
        "verification": verification,
    }


def trained_centers(report: str) -> int:
    """The classes of a full or Partial FC head, from the start-up report."""
    return int(re.search(r"^head .*?(\d+) (centres|class weights)", report, re.MULTILINE)[1])


def head_bytes(config: dict[str, Any], head: str, centers: int) -> int:
    """What the head keeps between steps: a container its centres, in their format; trained centres, in float32, also
    the optimizer's moments (one with SGD, two with AdamW), and unless it runs within the backward pass their gradient.
    """
    numbers = centers * config["model"]["embedding_dim"]
    if head == "attfc":
        dtype = config["head"].get("container_dtype", "auto")
        return numbers * BYTES[config["optim"]["precision"] if dtype == "auto" else dtype]
    moments = 2 if config["optim"].get("optimizer") == "adamw" else 1
    fused = head != "textbook" and config["head"].get("fuse_optimizer")
    return numbers * BYTES["float32"] * (1 + moments + (not fused))


def rows_of(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs by recipe, in the order given."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run["head"], run["config"]], sort_keys=True), []).append(run)
    return list(groups.values())


def mean(values: Sequence[float | None]) -> str:
    if None in values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def ends(found: Sequence[dict[str, Any]], far: str | None) -> list[float] | None:
    """What a single run's rate lies between; None where that is not known, as for an accuracy (no `far`)."""
    return found[0].get("at_far", {}).get(far, {}).get("tar_interval") if len(found) == 1 else None


def interval(found: Sequence[dict[str, Any]], far: str) -> str:
    """`ends` as text; empty where they are not known."""
    known = ends(found, far)
    return f" [{known[0]:.3f}, {known[1]:.3f}]" if known else ""


def table(runs: Sequence[dict[str, Any]], far: str) -> str:
    """A Markdown table of accuracy / TAR at this FAR, mean and standard deviation over seeds; "-" where a run's pairs
    support no such rate."""
    lists = list(dict.fromkeys(name for run in runs for name in run["verification"]))
    lines = [
        "| recipe | " + " | ".join(lists) + " | head MiB | seeds | min |",
        "| --- |" + " --- |" * (len(lists) + 3),
    ]
    for group in rows_of(runs):
        cells = [group[0]["name"].removesuffix(f"_{group[0]['seed']}")]
        for name in lists:
            found = [run["verification"][name] for run in group if name in run["verification"]]
            if not found:
                cells.append("")
                continue
            accuracy, rate = mean([v["accuracy"] for v in found]), mean([v["tar_at_far"].get(far) for v in found])
            cells.append(f"{accuracy} / {rate}{interval(found, far)}")
        cells += [f"{group[0]['head_mib']:.2f}", str(len(group)), f"{min(r['training_s'] for r in group) / 60:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(runs: Sequence[dict[str, Any]], stem: Path, far: str) -> list[Path]:
    """Accuracy and TAR over the centres of a step: AttFC as curves, Partial FC as squares, full FC as dashed lines;
    means and standard deviations over seeds, of a single run's rate its interval; PNG and SVG."""
    lists = list(dict.fromkeys(name for run in runs for name in run["verification"]))
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, label in zip(panels, ("accuracy", f"TAR at FAR {far}"), strict=True):
        for name, color in zip(lists, COLORS, strict=False):
            draw_list(axes, rows_of(runs), name, None if label == "accuracy" else far, color)
        sizes = sorted({(r["centers"], r["head_mib"]) for r in runs if r["head"] == "attfc"})
        axes.set_xscale("log")
        axes.set_xticks([s for s, _ in sizes], [f"{s}\n{mib:.2g} MiB" for s, mib in sizes], fontsize="small")
        axes.minorticks_off()
        axes.set_xlabel("centres that a step meets; memory of a container of that size")
        axes.set_ylabel(label)
        axes.grid(True, color="0.9")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def draw_list(axes: Axes, groups: Sequence[list[dict[str, Any]]], name: str, far: str | None, color: str) -> None:
    """One verification list's results under every head: the true accept rate at `far`, or accuracy."""
    points: dict[str, list[tuple[int, float, float, float]]] = {"attfc": [], "partial_fc": []}
    for group in groups:
        results = [run["verification"][name] for run in group if name in run["verification"]]
        values = [r["accuracy"] if far is None else r["tar_at_far"].get(far) for r in results]
        if not values or None in values:
            continue
        middle, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        low, high = ends(results, far) or (middle - spread, middle + spread)
        head = group[0]["head"]
        if head in ("fc", "textbook"):
            words = "full FC" if head == "fc" else "full FC, textbook"
            text = f"{name}, {words} ({group[0]['head_mib']:.1f} MiB)"
            axes.axhline(middle, color=color, linestyle="--", linewidth=1.2, label=text)
            axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
        else:
            points[head].append((group[0]["centers"], middle, middle - low, high - middle))
    for kind, style, text in (("attfc", "o-", "AttFC"), ("partial_fc", "s", "Partial FC")):
        if points[kind]:
            x, y, *spreads = zip(*sorted(points[kind]), strict=True)
            axes.errorbar(x, y, spreads, fmt=style, color=color, markersize=5, capsize=2, label=f"{name}, {text}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tables, JSON and the container-size plot from run folders.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; unfinished ones are left out")
    parser.add_argument("--json", type=Path, help="write every run's numbers there")
    parser.add_argument("--plot", type=Path, help="draw results over container size into PLOT.png and PLOT.svg")
    parser.add_argument("--far", type=float, default=0.01, help="false accept rate, one that the runs verified at")
    options = parser.parse_args(arguments)
    far = str(options.far)
    runs = [run for run in map(read_run, options.runs) if run is not None]
    if not runs:
        parser.error("none of the runs is finished")
    known = {rate for run in runs for found in run["verification"].values() for rate in found["tar_at_far"]}
    if known and far not in known:
        parser.error(f"--far must be one that the runs verified at, {', '.join(sorted(known, key=float))}, got {far}")
    print(table(runs, far))
    if options.json:
        options.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        print("written:", *plot(runs, options.plot, far))


if __name__ == "__main__":
    main()

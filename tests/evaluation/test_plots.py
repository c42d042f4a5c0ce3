"""The pictures: what curves they hold, that they are PNGs of a fair size, and the errors."""

import json

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.evaluation import plot_cosines, plot_histogram, plot_roc, plot_training, plots

SAME = np.repeat([True, False], [4, 8])
SIMILARITY = np.array([0.9, 0.8, 0.7, 0.3, 0.75, 0.2, 0.1, 0.1, 0.05, 0.0, -0.1, -0.2])


@pytest.fixture
def figures(monkeypatch):
    """Every figure on its way to disk."""
    seen = []
    save = plots._save

    def note(figure, path):
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", note)
    return seen


def check_png(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 480
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 20, "the picture is blank"


def test_roc_holds_the_rates_of_every_method(tmp_path, figures):
    inverted = -SIMILARITY
    plot_roc({"ours": (SIMILARITY, SAME), "upside down": (inverted, SAME)}, tmp_path / "roc.png", title="Two methods")
    check_png(tmp_path / "roc.png")
    axes = figures[0].axes[0]
    ours, other, chance = axes.get_lines()
    # By descending threshold: two genuine pairs pass, then the impostor at .75 (1 of 8), the third genuine, the last:
    # 2 of the 32 comparisons of a genuine with an impostor pair are out of order.
    points = set(zip(ours.get_xdata().tolist(), ours.get_ydata().tolist(), strict=True))
    assert {(0.125, 0.5), (0.125, 0.75), (0.125, 1.0), (1.0, 1.0)} <= points
    assert ours.get_drawstyle() == "steps-post"  # between two thresholds nothing more is accepted
    assert other.get_ydata()[0] == 0.0 and other.get_xdata()[-1] == 1.0
    assert np.array_equal(chance.get_xdata(), chance.get_ydata())
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((0.1, 1.0))  # at most a tenth, though one false accept is 1 / 8
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        "ours (AUC 0.938)",
        "upside down (AUC 0.062)",
        "chance",
    ]
    assert axes.get_title() == "Two methods"
    assert axes.get_xlabel() and axes.get_ylabel()


def test_the_roc_starts_at_one_false_accept_of_the_longest_list(tmp_path, figures):
    similarity = np.concatenate([np.linspace(0.4, 1, 50), np.linspace(0, 0.6, 2000)])
    same = np.arange(2050) < 50
    plot_roc({"long": (similarity, same), "short": (SIMILARITY, SAME)}, tmp_path / "roc.png")
    assert figures[0].axes[0].get_xlim() == pytest.approx((1 / 2000, 1.0))


def test_more_methods_than_colours_stay_apart(tmp_path, figures):
    plot_roc({f"method {k}": (SIMILARITY, SAME) for k in range(9)}, tmp_path / "roc.png")
    styles = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].get_lines()}
    assert len(styles) == 10


def test_long_names_stay_inside_the_picture(tmp_path, figures):
    names = [
        "a network with quite a long name, on some list of pairs with a longer name still, seed 0",
        "short",
        "x" * 50,
    ]
    plot_roc({name: (SIMILARITY, SAME) for name in names}, tmp_path / "roc.png")
    legend = figures[0].legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figures[0].bbox.width
    curves_area = figures[0].axes[0].get_window_extent()
    assert legend.y1 <= curves_area.y0, "the legend covers the curves"
    assert curves_area.height >= 3.0 * figures[0].dpi, "the legend has taken the room of the curves"


def test_histogram_shows_shares_of_each_kind(tmp_path, figures):
    plot_histogram(SIMILARITY, SAME, tmp_path / "histogram.png", threshold=0.25)
    check_png(tmp_path / "histogram.png")
    axes = figures[0].axes[0]
    heights = {}
    for container in axes.patches:
        path = container.get_path().vertices
        heights[container.get_label().split()[0]] = path[:, 1].max()
    assert heights == {"genuine": pytest.approx(1 / 4), "impostor": pytest.approx(2 / 8)}
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert sorted(labels) == ["genuine (4 pairs, mean 0.68)", "impostor (8 pairs, mean 0.11)", "threshold 0.250"]
    low, high = axes.get_xlim()
    assert low < SIMILARITY.min() and high > SIMILARITY.max()


def test_a_constant_similarity_can_still_be_looked_at(tmp_path):
    plot_histogram(np.full(12, 0.5), SAME, tmp_path / "histogram.png")
    check_png(tmp_path / "histogram.png")


@pytest.mark.parametrize("draw", [
    lambda s, y, path: plot_roc({"x": (s, y)}, path),
    lambda s, y, path: plot_histogram(s, y, path),
])  # fmt: skip
def test_bad_pairs_are_named(draw, tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"similarity must be finite, got 1 values that are not"):
        draw(np.where(SIMILARITY == 0.9, np.nan, SIMILARITY), SAME, path)
    with pytest.raises(ValueError, match=r"same must hold genuine and impostor pairs, got 12 genuine of 12"):
        draw(SIMILARITY, np.ones(12, dtype=bool), path)
    with pytest.raises(ValueError, match=r"same must be bool of the similarities' shape \[12\], got float64 \[12\]"):
        draw(SIMILARITY, SAME.astype(float), path)
    assert not path.exists()


def test_no_methods_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="plot_roc: results must hold at least one method, got none"):
        plot_roc({}, tmp_path / "x.png")


def log(path, steps=200, checks=(100, 200), **changes):
    records = [{"kind": "config", "name": "not a step"}]
    for step in range(1, steps + 1):
        values = {"loss": 10.0 + (-1) ** step, "lr": 0.1, "positive_cosine": step / 400, "hard_fraction": 0.1, "t": 0.2}
        records.append({"kind": "step", "step": step, **values, "images_per_s": 100.0, **changes})
        if step in checks:
            records.append({"kind": "verify", "step": step, "accuracy": 0.8, "tar_at_far": {"0.01": 0.5, "0.001": 0.1}})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def curves(figure, label):
    """Label -> (steps, values) of the thick curves in the panel with that axis label."""
    panel = next(axes for axes in figure.axes if axes.get_ylabel() == label)
    lines = [line for line in panel.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in lines}


def test_training_curves_hold_the_records(tmp_path, figures):
    plot_training(log(tmp_path / "log.jsonl"), tmp_path / "training.png")
    check_png(tmp_path / "training.png")
    figure = figures[0]
    steps, loss = curves(figure, "loss")["loss"]
    assert np.array_equal(steps, np.arange(1, 201))
    # 2 % of 200 steps: a mean over 5 of the values 9, 11, 9, ... leaves 10 +- 0.2, over 3 at the ends +- 1/3.
    assert np.abs(loss - 10.0).max() == pytest.approx(1 / 3)
    assert np.abs(loss[2:-2] - 10.0).max() == pytest.approx(0.2)
    verification = curves(figure, "verification")
    assert list(verification) == ["accuracy", "TAR at FAR 0.01", "TAR at FAR 0.001"]
    assert verification["TAR at FAR 0.001"][0].tolist() == [100, 200]
    assert verification["TAR at FAR 0.001"][1].tolist() == [0.1, 0.1]
    assert curves(figure, "learning rate")["learning rate"][1].tolist() == [0.1] * 200  # not smoothed


def test_several_pair_lists_get_a_curve_each(tmp_path, figures):
    path = log(tmp_path / "log.jsonl", checks=())
    records = [
        {"kind": "verify", "step": step, "name": name, "accuracy": accuracy, "tar_at_far": {"0.01": 0.1}}
        for step in (100, 200)
        for name, accuracy in (("lfw", 0.9), ("orl", 0.7))
    ]
    path.write_text(path.read_text() + "".join(json.dumps(record) + "\n" for record in records))
    plot_training(path, tmp_path / "training.png")
    verification = curves(figures[0], "verification")
    assert {label: values.tolist() for label, (_, values) in verification.items()} == {
        "accuracy, lfw": [0.9, 0.9],
        "accuracy, orl": [0.7, 0.7],
    }


def test_several_runs_are_told_apart_by_colour(tmp_path, figures):
    runs = {"AdaSin": log(tmp_path / "a.jsonl"), "ArcFace": log(tmp_path / "b.jsonl", steps=50, checks=())}
    plot_training(runs, tmp_path / "training.png")
    panel = next(axes for axes in figures[0].axes if axes.get_ylabel() == "learning rate")
    assert len({line.get_color() for line in panel.get_lines()}) == 2
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["AdaSin", "ArcFace"]
    assert all(axes.get_xlim() == (0, 204) for axes in figures[0].axes)


def test_absent_null_and_non_finite_values_are_passed_over(tmp_path, figures):
    path = log(tmp_path / "log.jsonl", steps=5, checks=(), t=None, hard_fraction=float("nan"), lr="fast")
    plot_training(path, tmp_path / "training.png")
    for label in ("hard negatives", "learning rate", "verification"):
        panel = next(axes for axes in figures[0].axes if axes.get_ylabel() == label)
        assert [text.get_text() for text in panel.texts] == ["not recorded"]
    assert list(curves(figures[0], "cosine")) == ["to own centre (mean)"]


def test_a_half_written_last_line_is_passed_over(tmp_path, figures):
    path = log(tmp_path / "log.jsonl", steps=5, checks=())
    path.write_text(path.read_text() + '{"kind": "step", "st')
    plot_training(path, tmp_path / "training.png")
    assert len(curves(figures[0], "loss")["loss"][0]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"kind": "step"\n{"kind": "step", "step": 1, "loss": 1.0}\n',
            r"line 1 of .*log must be a JSON object, got '",
        ),
        ('[1]\n{"kind": "step", "step": 1}\n', r"line 1 of .*log must be a JSON object, got '\[1\]'"),
        ('{"kind": "verify", "step": 1}\n', r".*log must hold at least one record of kind 'step', got 1 records"),
        ("", r".*log must hold at least one record of kind 'step', got 0 records"),
    ],
)
def test_bad_logs_are_named(text, message, tmp_path):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match=f"^plot_training: {message}"):
        plot_training(tmp_path / "log", tmp_path / "x.png")


def test_no_logs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="plot_training: logs must hold at least one log, got none"):
        plot_training({}, tmp_path / "x.png")


def test_cosines_are_drawn_by_kind_and_by_age(tmp_path, figures):
    negative = np.array([0.5, 0.3, 0.1, 0.0, -0.2, -0.4])
    plot_cosines(np.array([0.8, 0.6]), negative, np.array([0, 0, 1, 1, 60, 60]), tmp_path / "cosines.png", "Step 7")
    check_png(tmp_path / "cosines.png")
    shares, by_age = figures[0].axes
    assert [text.get_text() for text in shares.get_legend().get_texts()] == [
        "own centre (mean 0.70)",
        "other, fresh (mean 0.40)",
        "other, older (mean -0.12)",
    ]
    mean, median = by_age.get_lines()
    assert mean.get_ydata() == pytest.approx([0.7, 0.7])
    # 61 steps make groups of 3: steps 0 to 2 and 60 to 62.
    assert median.get_xdata().tolist() == [0, 60]
    assert median.get_ydata() == pytest.approx([0.2, -0.3])
    assert figures[0].get_suptitle() == "Step 7"


def test_positives_alone_can_be_drawn(tmp_path, figures):
    plot_cosines(np.array([0.8]), np.array([]), np.array([]), tmp_path / "cosines.png")
    assert len(figures[0].axes[0].get_legend().get_texts()) == 1


@pytest.mark.parametrize(
    "positive, negative, age, message",
    [
        ([], [0.1], [0], "positive must be one-dimensional and finite and not empty, got shape [0]"),
        ([0.1], [np.nan], [0], "negative must be one-dimensional and finite, got shape [1]"),
        ([0.1], [0.1, 0.2], [0], "age must have the negatives' shape [2], got [1]"),
    ],
)
def test_bad_cosines_are_named(positive, negative, age, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        plot_cosines(np.array(positive), np.array(negative), np.array(age), tmp_path / "x.png")
    assert str(caught.value) == f"plot_cosines: {message}"

"""`<run>/card.md`: what a network is, what it was trained on, what was measured of it and what was not.

Only what this run has measured stands there; it is written anew at each verification and at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attfc_cuda._check import printable
from attfc_cuda._files import write_text
from attfc_cuda._version import __version__
from attfc_cuda.evaluation import OperatingPoint, VerificationResult
from attfc_cuda.evaluation.fingerprint import MIRRORED, fingerprint
from attfc_cuda.evaluation.intervals import Interval
from attfc_cuda.train.best import Best
from attfc_cuda.train.manifest import Manifest

if TYPE_CHECKING:
    from attfc_cuda.train.training import Training

CARD = "card.md"
# Of a combined margin (ArcFace, CosFace, SphereFace): a factor of the angle and what is added to it and taken off its
# cosine.
_NO_MARGIN = {"m1": 1.0, "m2": 0.0, "m3": 0.0}


def write_card(
    own: Manifest,
    training: Training,
    best: Best | None,
    *,
    step: int | None,
    results: Mapping[str, VerificationResult],
) -> str | None:
    """Write the card of a run, all of it or nothing.

    Args:
        own: The run's manifest.
        training: The run as it is now.
        best: Its best network.
        step: At which `results` were found; None: nothing was verified yet.
        results: By the name of the set.

    Returns:
        A sentence where it cannot be written, as the file is somebody else's.
    """
    path = own.folder / CARD
    if not own.may_write(path):
        return f"{path} is not the run's own: it stays as it is"
    own.add([path])
    parts = [_head(training), _network(training), _data(training), _numbers(training, best, step, results)]
    parts.append(_limits(training, best, results if step is not None else {}))
    write_text(path, "\n\n".join(parts) + "\n")
    return None


def _head(training: Training) -> str:
    done, total = training.step, training.total_steps
    state = "the end" if done == total else f"step {done} of {total}"
    return f"# {_text(training.config.run.run.absolute().name)}\n\nWritten by attfc_cuda {__version__} at {state}."


def _network(training: Training) -> str:
    config, network = training.config, training.backbone
    count = sum(p.numel() for p in network.parameters())
    size = config.dataset.image_size
    options = f" ({_text(config.model.backbone_options)})" if config.model.backbone_options else ""
    rows = {
        "backbone": f"{_text(config.model.backbone)}{options}, {count / 1e6:.2f} M parameters",
        "takes": f"aligned faces, RGB, {size} x {size}, (pixel - 127.5) / 127.5",
        "gives": f"embeddings of {config.model.embedding_dim} numbers, to be compared by their cosine",
        "tensors": f"`{fingerprint(network)}`, as in the reports of `attfc verify` and in ONNX files",
    }
    return "## Network\n\n" + _table(("", ""), [*rows.items()])


def _data(training: Training) -> str:
    config, counts = training.config, training.data_identity.counts
    least = config.dataset.min_images
    probes = counts >= least
    rows = {
        "data": f"`{_text(config.dataset.data)}`",
        "images": f"{counts.sum():,} of {len(counts):,} identities",
        "probes": f"{counts[probes].sum():,} images of {probes.sum():,} identities with at least {least}",
        "head": ", ".join([config.head.head, *_margin(training)]),
        "steps": f"{training.step:,} of {training.total_steps:,}, {config.dataset.batch_size} probes each, "
        f"{training.step / training.steps_per_epoch:.1f} epochs, seed {config.run.seed}",
    }
    if training.loader.ignored_rows:
        rows["left out"] = f"{training.loader.ignored_rows:,} rows whose image could not be read"
    if config.model.init is not None:
        rows["started from"] = f"`{_text(str(config.model.init))}`"
    return "## Trained on\n\n" + _table(("", ""), [*rows.items()])


def _margin(training: Training) -> list[str]:
    """Its name and numbers, as the head has them."""
    options = training.config.head
    margin = getattr(getattr(training.objective, "head", None), "margin", None)
    values = {name: getattr(margin, name, None) for name in ("m", *_NO_MARGIN, "scale")}
    numbers = [
        f"{name} {value:g}"
        for name, value in values.items()
        if isinstance(value, (int, float)) and value != _NO_MARGIN.get(name)
    ]
    return [_text(options.margin_name), *filter(None, [_text(options.margin_options)]), *numbers]


def _numbers(training: Training, best: Best | None, step: int | None, results: Mapping[str, VerificationResult]) -> str:
    if step is None or not results:
        return "## Verified on\n\nNothing was verified during training; `attfc verify` does it."
    sets, points = [], []
    for name, result in results.items():
        accuracy = "" if result.accuracy is None else f"{result.accuracy:.4f}"
        people = "" if result.num_identities is None else f"{result.num_identities:,}"
        pairs = f"{result.num_genuine:,} genuine, {result.num_impostors:,} impostor"
        sets.append((_text(name), pairs, people, accuracy, f"{result.auc:.4f}", f"{result.eer:.4f}"))
        points += [(_text(name), f"{far:g}", *_point(point)) for far, point in result.at_far.items()]
    text = (
        f"## Verified on\n\nThe network at step {step}, with the mirrored image's embedding added ({MIRRORED}). Behind "
        "a number the interval that holds 95 % of a bootstrap over identities.\n\n"
    )
    text += _table(("set", "pairs", "identities", "accuracy", "AUC", "EER"), sets)
    if points:
        text += "\n\n" + _table(("set", "FAR", "TAR", "threshold"), points)
        if any(point.few_impostors for result in results.values() for point in result.at_far.values()):
            text += "\n\n\\* fewer than 10 / FAR impostor pairs: read the interval, not the number."
    if best is not None and best.score is not None:
        kept = f"`{best.path.name}` holds the network at step {best.step}"
        text += f"\n\n{kept}, the best so far: {best.by} {best.score:.4f}."
    return text


def _limits(training: Training, best: Best | None, results: Mapping[str, VerificationResult]) -> str:
    limits = []
    if results:
        limits.append(
            "The numbers are for people and pictures like those of the sets above. A threshold keeps its false accept "
            "rate on such pairs only, for this network and this kind of embedding."
        )
    if best is not None and best.score is not None:
        limits.append("The best network was chosen by these very sets: on others it is likely to do a little worse.")
    limits.append(
        "Not measured: other groups of people, ages, cameras and alignments than those of the sets; whether a face is "
        "that of a living person; search in a gallery (`attfc identify --evaluate` measures it)."
    )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _point(point: OperatingPoint) -> tuple[str, str]:
    star = "\\*" if point.few_impostors else ""
    return (
        f"{point.tar:.4f}{star}{_interval(point.tar_interval)}",
        f"{point.threshold:.4f}{_interval(point.threshold_interval)}",
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(given: str) -> str:
    """On one line, and without what would end a cell or open markup."""
    text = printable(given).replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")")
    return " ".join(text.split())

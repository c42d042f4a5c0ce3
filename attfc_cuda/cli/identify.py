"""`attfc identify`: who is it, among the people of a gallery; and how often that answer is right."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from attfc_cuda._error import error, printable
from attfc_cuda.cli._network import NetworkFlags, embed, load

if TYPE_CHECKING:
    from torch import nn

    from attfc_cuda.evaluation.named_images import NamedEmbeddings

SHOWN = 50
_NOBODY = "nobody in the gallery"


@dataclass
class Command(NetworkFlags):
    """Find each probe among the identities of a gallery: the top k with their cosines.

    With --evaluate, or on a folder of IJB-B or IJB-C with --ijb: rank-k (closed set) and TPIR at FPIR (open set).
    """

    probes: tyro.conf.Positional[str | None] = None
    """An image, a folder of images, or faces as for `attfc train --data`."""
    gallery: str | None = None
    """Faces of known people, GALLERY/NAME/IMAGE or any other source of `attfc train --data`; or a .npy or .parquet of
    `attfc embed`, which spares embedding them again (one of `--no-unit` gives the same result) and is refused where it
    is of another network. A person's embedding is the mean direction of the images."""
    ijb: Path | None = None
    """Folder of IJB-B or IJB-C with its 1:N lists, instead of probes and gallery."""
    top_k: int = 5
    """Identities named for each probe."""
    threshold: float | None = None
    """Cosine below which nobody is named; None: the nearest are always named."""
    evaluate: bool = False
    """Take the names of the probes' identities for the truth, and count rank-k and TPIR at FPIR. Probes of people
    outside of the gallery are the non-mated ones."""
    engine: Literal["torch", "faiss"] = "torch"
    """What searches; faiss (needs to be installed) is on the CPU."""
    out: Path | None = None
    """Folder for identified.csv, and identification.json of an evaluation; None: print only."""


def run(command: Command) -> int:
    """Print the answers, write the files; exit code 0."""
    _check(command)
    network = load(command)
    if command.ijb is not None:
        return _evaluate_ijb(command, network)
    from attfc_cuda.evaluation.embedding_files import SUFFIXES, read_embeddings
    from attfc_cuda.evaluation.identification import search
    from attfc_cuda.evaluation.named_images import gallery_of
    from attfc_cuda.train.training import pick_device

    stored = Path(command.gallery).suffix in SUFFIXES
    known = read_embeddings(Path(command.gallery)) if stored else embed(command, network, command.gallery, unit=False)
    gallery, identities = gallery_of(known)
    if gallery.shape[1] != network.embedding_dim:
        rule = f"hold embeddings of this network, of {network.embedding_dim} numbers"
        raise error("identify", "gallery", rule, gallery.shape[1])
    if stored:
        _require_same_network(command, known, network)
    probes = embed(command, network, command.probes)
    device = pick_device(command.device)
    scores, rows = search(
        probes.embeddings.to(device), gallery.to(device), min(command.top_k, len(gallery)), command.engine
    )
    answers = [
        [(identities[row], score) for row, score in zip(found, values, strict=True) if _believed(command, score)]
        for found, values in zip(rows.tolist(), scores.tolist(), strict=True)
    ]
    _show(probes.names, answers)
    files = [] if command.out is None else [_write_answers(command.out, probes.names, answers)]
    if command.evaluate:
        files += _evaluate(command, known, probes, gallery, identities)
    if files:
        print("written:", ", ".join(map(str, files)))
    return 0


def _require_same_network(command: Command, known: NamedEmbeddings, network: nn.Module) -> None:
    """Raise ValueError where a file has embeddings that those of the probes cannot be compared with."""
    from attfc_cuda.evaluation.fingerprint import made_by

    there, here = known.made_by, made_by(network, command.flip)
    if there is None:
        print(printable(f"attfc: {command.gallery} does not say what network its embeddings are of"), file=sys.stderr)
        return
    remedy = f"make it anew with `attfc embed` and {command.checkpoint}"
    if there.network != here.network:
        got = f"{there.network} in {command.gallery}"
        raise error("identify", "gallery", f"hold embeddings of this network, {here.network}", got, remedy)
    if there.embedding != here.embedding:
        got = f"{there.embedding!r} in {command.gallery}"
        remedy += ", or give both the same --flip or --no-flip"
        raise error("identify", "gallery", f"hold embeddings of the kind {here.embedding!r}", got, remedy)


def _check(command: Command) -> None:
    given = [command.probes is not None, command.gallery is not None]
    if any(given) if command.ijb is not None else not all(given):
        got = f"probes {command.probes}, gallery {command.gallery}, ijb {command.ijb}"
        raise error("identify", "probes", "be given with gallery, or ijb alone", got)
    if command.top_k < 1:
        raise error("identify", "top_k", "be at least 1", command.top_k)
    if command.threshold is not None and not -1 <= command.threshold <= 1:
        raise error("identify", "threshold", "be a cosine, in [-1, 1]", command.threshold)


def _believed(command: Command, score: float) -> bool:
    return command.threshold is None or score >= command.threshold


def _show(names: list[str], answers: list[list[tuple[str, float]]]) -> None:
    for name, found in list(zip(names, answers, strict=True))[:SHOWN]:
        print(printable(f"{name}: {', '.join(f'{identity} {score:.4f}' for identity, score in found) or _NOBODY}"))
    if len(names) > SHOWN:
        print(f"and {len(names) - SHOWN} more; --out FOLDER writes them all")


def _write_answers(folder: Path, names: list[str], answers: list[list[tuple[str, float]]]) -> Path:
    import csv
    import io

    from attfc_cuda._files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["probe", "rank", "identity", "cosine"])
    for name, found in zip(names, answers, strict=True):
        writer.writerows([name, rank, identity, f"{score:.6f}"] for rank, (identity, score) in enumerate(found, 1))
        if not found:
            writer.writerow([name, "", "", ""])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "identified.csv", text.getvalue().encode("utf-8", "backslashreplace").decode())
    return folder / "identified.csv"


def _evaluate(
    command: Command, known: NamedEmbeddings, probes: NamedEmbeddings, gallery, identities: list[str]
) -> list[Path]:
    import os

    from attfc_cuda._files import write_text
    from attfc_cuda.evaluation.identification import evaluate_identification

    if "" in probes.identities:
        name = probes.names[probes.identities.index("")]
        rule, remedy = "say whose each image is, to be evaluated", "a folder for each person: PROBES/NAME/IMAGE"
        raise error("identify", "probes", rule, f"{name}, of nobody", remedy)
    enrolled = {os.path.realpath(name) for name in known.names}
    kept = [i for i, name in enumerate(probes.names) if os.path.realpath(name) not in enrolled]
    if len(kept) < len(probes.names):
        print(f"attfc: {len(probes.names) - len(kept)} probes are not counted: the gallery has them", file=sys.stderr)
    if not kept:
        raise error("identify", "probes", "be other images than the gallery's", "the same ones")
    truth = [probes.identities[i] for i in kept]
    result = evaluate_identification(probes.embeddings[kept], truth, gallery, identities)
    print(result.summary())
    if command.out is None:
        return []
    write_text(command.out / "identification.json", result.to_json())
    return [command.out / "identification.json"]


def _evaluate_ijb(command: Command, network: nn.Module) -> int:
    import json

    from attfc_cuda._files import write_text
    from attfc_cuda.evaluation import read_ijb, template_embeddings
    from attfc_cuda.evaluation.embed import embed_images
    from attfc_cuda.evaluation.fingerprint import embedding_kind
    from attfc_cuda.evaluation.ijb_identification import evaluate_ijb_identification, read_ijb_identification

    size: Any = network.image_size
    protocol, data = read_ijb_identification(command.ijb), read_ijb(command.ijb, size)
    embeddings = embed_images(
        network, data.images, flip=embedding_kind(network, command.flip)[1], unit=False, batch_size=command.batch_size,
        progress=sys.stdout.isatty(),
    )  # fmt: skip
    pooled = template_embeddings(embeddings, data.template, data.media, data.weights)
    results, mean = evaluate_ijb_identification(pooled, protocol)
    for name, result in {**results, "mean": mean}.items():
        print(f"{name}:\n{result.summary()}")
    if command.out is not None:
        command.out.mkdir(parents=True, exist_ok=True)
        numbers = {name: result.to_dict() for name, result in {**results, "mean": mean}.items()}
        write_text(command.out / "identification.json", json.dumps(numbers, indent=2) + "\n")
        print("written:", command.out / "identification.json")
    return 0

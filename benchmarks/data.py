"""How fast data sets open and give batches, and what they keep in memory, by format and size.

    python benchmarks/data.py make FOLDER --images 100000       # drawn faces as .rec, tar shards, LMDB, list, folders
    python benchmarks/data.py measure FOLDER --output benchmarks/results/data.json
    python benchmarks/data.py measure --images 2000 20000 --formats rec tar     # makes them in a folder of its own

"first open" looks through the source, without a kept index; "cached open" reads the index. "memory kept" adds up the
arrays and names of data set and loader, exactly: no measurement. "first batch" is a new loader's, "start of an epoch"
and "middle of an epoch" are the choice of a batch's images in an epoch that was not begun before. The other rows are
those of `attfc data bench`, in seconds an image. Files have been written just before or read already, so that the
system has them in memory: from a disk the first opening takes longer.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402

from attfc_cuda.data import AttentionLoader, FaceDataset, ProceduralFaces, build_dataset  # noqa: E402
from attfc_cuda.data.bench import bench_data  # noqa: E402
from attfc_cuda.data.sources.index_cache import SUFFIX  # noqa: E402
from attfc_cuda.data.sources.recordio_writer import RecordWriter  # noqa: E402

FORMATS = ("rec", "tar", "lmdb", "list", "folders")
IMAGES_OF_AN_IDENTITY, SHARD, IMAGE_SIZE = 20, 10_000, 112


def faces(count: int) -> Iterator[tuple[int, bytes]]:
    """Identity and JPEG of each image: 16 drawn faces, again and again."""
    from PIL import Image

    drawn, files = ProceduralFaces(4, 4, IMAGE_SIZE), []
    for index in range(len(drawn)):
        stream = io.BytesIO()
        Image.fromarray(drawn[index].permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    for number, file in zip(range(count), itertools.cycle(files), strict=False):
        yield number // IMAGES_OF_AN_IDENTITY, file


def make(folder: Path, form: str, count: int) -> str:
    """Write `count` images in a format, unless they are there; what `attfc train --data` would be given."""
    place = folder / f"{form}_{count}"
    shards = -(-count // SHARD)
    source = {
        "rec": f"{place}/train.rec",
        "tar": f"{place}/train-{{0000..{shards - 1:04d}}}.tar",
        "lmdb": f"{place}/train.lmdb",
        "list": f"{place}/list.txt",
        "folders": f"{place}/faces",
    }[form]
    done = place / "complete.json"
    if not done.is_file():
        place.mkdir(parents=True, exist_ok=True)
        _WRITERS[form](place, count)
        done.write_text(json.dumps({"images": count}))
    return source


def _write_rec(place: Path, count: int) -> None:
    with RecordWriter(place / "train.rec") as writer:
        for key, (identity, file) in enumerate(faces(count)):
            writer.write(key, [identity], file)


def _write_tar(place: Path, count: int) -> None:
    numbered = enumerate(faces(count))
    for shard in range(-(-count // SHARD)):
        with tarfile.open(place / f"train-{shard:04d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, (identity, file) in itertools.islice(numbered, SHARD):
                for name, content in (("jpg", file), ("cls", b"%d" % identity)):
                    member = tarfile.TarInfo(f"{number:09d}.{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def _write_lmdb(place: Path, count: int) -> None:
    import lmdb

    size = 2**24 + count * 16384
    with lmdb.open(str(place / "train.lmdb"), map_size=size, subdir=False) as env, env.begin(write=True) as transaction:
        for number, (identity, file) in enumerate(faces(count)):
            transaction.put(b"%07d/%09d" % (identity, number), file)


def _write_folders(place: Path, count: int) -> None:
    for number, (identity, file) in enumerate(faces(count)):
        path = place / "faces" / f"{identity:07d}" / f"{number:09d}.jpg"
        if number % IMAGES_OF_AN_IDENTITY == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)


def _write_list(place: Path, count: int) -> None:
    _write_folders(place, count)
    lines = (f"faces/{n // IMAGES_OF_AN_IDENTITY:07d}/{n:09d}.jpg {n // IMAGES_OF_AN_IDENTITY}\n" for n in range(count))
    (place / "list.txt").write_text("".join(lines))


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    "rec": _write_rec, "tar": _write_tar, "lmdb": _write_lmdb, "list": _write_list, "folders": _write_folders,
}  # fmt: skip


def kept_bytes(*things: Any) -> int:
    """Of all arrays, tensors and lists of names that objects hold, each once."""
    seen: set[int] = set()
    waiting, total = list(things), 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            if thing.base is not None and isinstance(thing.base, np.ndarray):
                waiting.append(thing.base)  # a view keeps all of it
            else:
                total += thing.nbytes
        elif isinstance(thing, torch.Tensor):
            total += thing.untyped_storage().nbytes()
        elif isinstance(thing, list | tuple):
            total += sys.getsizeof(thing) + sum(sys.getsizeof(name) for name in thing if isinstance(name, str))
            waiting += (part for part in thing if not isinstance(part, str))
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif type(thing).__module__.startswith("attfc_cuda.") and hasattr(thing, "__dict__"):
            waiting.append(vars(thing))
    return total


def measure_source(source: str, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What each row measures, with its numbers."""

    def opened() -> FaceDataset:
        return build_dataset(source, IMAGE_SIZE, on_bad_image="raise")

    def first_open() -> float:
        for index in folder.rglob(f"*{SUFFIX}"):
            index.unlink()
        return _seconds(opened)

    rows = [_row("first open", [first_open() for _ in range(given.rounds)])]
    rows.append(_row("cached open", [_seconds(opened) for _ in range(given.rounds)]))
    dataset = opened()
    loader = AttentionLoader(dataset, given.batch)
    kept = kept_bytes(dataset, loader)
    rows.append({"what": "memory kept", "peak_mib": kept / 2**20, "bytes_per_image": kept / len(dataset)})

    def first_batch() -> None:
        next(iter(AttentionLoader(dataset, given.batch)))

    def plan(epoch: int, batch: int) -> None:
        loader.sampler.plan(epoch, batch, loader.mirror, loader.augmentation.random, True)

    rows.append(_row("first batch", [_seconds(first_batch) for _ in range(given.rounds)]))
    for what, first, batch in (("start", 1, 0), ("middle", given.rounds + 1, len(loader) // 2)):
        seconds = [_seconds(lambda e=epoch, b=batch: plan(e, b)) for epoch in range(first, first + given.rounds)]
        rows.append(_row(f"{what} of an epoch", seconds))
    rates = bench_data(dataset, seconds=given.seconds, batch_size=given.batch, workers=tuple(given.workers))
    return rows + [
        {"what": rate.what, "median_s": 1 / rate.images_per_s, "images_per_s": rate.images_per_s} for rate in rates
    ]


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {"what": what, **measure.spread(seconds)}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("make", "write drawn faces"), ("measure", "measure them, making those that are not there")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, nargs=None if name == "make" else "?", help="where they lie")
        command.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
        command.add_argument("--images", type=int, nargs="+", default=[20_000], help="sizes of the data sets")
        if name == "measure":
            command.add_argument("--batch", type=int, default=128, help="probes")
            command.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="numbers of loader processes")
            command.add_argument("--seconds", type=float, default=1.0, help="for each rate of images")
            reports.add_rounds(command, 3)
            reports.add_threads(command)
            reports.add_output(command)
    given = parser.parse_args(arguments)
    if min(given.images) < 2 * IMAGES_OF_AN_IDENTITY:
        parser.error(f"--images must be at least {2 * IMAGES_OF_AN_IDENTITY}, got {min(given.images)}")
    if given.command == "measure":
        reports.check_output(parser, given)
        if given.batch > min(given.images):
            parser.error(f"--batch must be at most the images of a data set, got {given.batch}")
    return given


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each row."""
    for row in rows:
        if "bytes_per_image" in row:
            value = f"{row['bytes_per_image']:.2f} bytes an image"
        elif "images_per_s" in row:
            value = f"{row['images_per_s']:.0f} images/s"
        else:
            value = reports.seconds_text(row["median_s"])
        print(f"{row['format']:8} {reports.count_text(row['images']):>6} images  {row['what']:36} {value}")


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if given.command == "make":
        for form, count in itertools.product(given.formats, given.images):
            print(make(given.folder, form, count))
        return
    if given.threads:
        torch.set_num_threads(given.threads)
    command = "python " + shlex.join(["benchmarks/data.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = {"schema": reports.DATA, "environment": measure.environment(), "command": command, "rows": []}
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for form, count in itertools.product(given.formats, given.images):
            print(f"{form}, {count} images ...", file=sys.stderr, flush=True)
            source = make(folder, form, count)
            kinds = {"format": form, "images": count, "batch": given.batch}
            rows = measure_source(source, folder / f"{form}_{count}", given)
            report["rows"] += [kinds | row for row in rows]
            if given.output:
                reports.write(given.output, report)
    show(report["rows"])
    if given.output:
        print(f"written: {given.output}")


if __name__ == "__main__":
    main()

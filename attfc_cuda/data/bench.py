"""How many images a second a data set gives: reading, decoding, and whole batches of the attention loader."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from attfc_cuda.data.attention_loader import AttentionLoader
from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.images import decode_image
from attfc_cuda.data.jpeg import decoder_name
from attfc_cuda.data.sources.stored import StoredFaces


class Rate(NamedTuple):
    """What was timed, and how many images a second came of it."""

    what: str
    images_per_s: float


def bench_data(
    dataset: FaceDataset,
    *,
    seconds: float = 3.0,
    batch_size: int = 128,
    gallery_size: int = 2,
    probes_per_identity: int = 1,
    gallery_steps: int = 1,
    augment: str = "flip",
    workers: tuple[int, ...] = (0,),
    seed: int = 0,
) -> list[Rate]:
    """Time each stage for about `seconds`, on images drawn at random.

    For data sets of stored images: reading the encoded bytes; decoding them by Pillow and, where simplejpeg is
    installed, by that (in this process, one thread). For every data set: `dataset[i]`, and the batches of an
    `AttentionLoader` with each number of worker processes (every image of a batch counts: probes, galleries,
    negatives). Images that cannot be read are passed over.
    """
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    rates = []
    if isinstance(dataset, StoredFaces):
        rates.append(_rate("read", dataset.content, order, seconds))
        contents = []
        for index in order[:512]:
            try:
                contents.append((dataset.content(index), dataset.where(index)))
            except UnreadableImage:
                continue
        decoders = ["Pillow"] if decoder_name() == "Pillow" else ["Pillow", decoder_name()]
        for name in decoders:

            def decode(item: tuple[bytes, str], fast: bool = name != "Pillow") -> None:
                decode_image(*item[:1], dataset.image_size, item[1], fast=fast)

            rates.append(_rate(f"decode, {name}", decode, contents, seconds))
    rates.append(_rate("data set", dataset.__getitem__, order, seconds))
    for count in workers:
        loader = AttentionLoader(
            dataset, batch_size, gallery_size, seed=seed, augment=augment, num_workers=count, drop_last=False,
            probes_per_identity=probes_per_identity, gallery_steps=gallery_steps,
        )  # fmt: skip
        rates += _loader_rates(f"attention loader, {count} workers", loader, seconds)
    return rates


def format_rates(rates: list[Rate]) -> str:
    """A line for each rate."""
    width = max(len(rate.what) for rate in rates)
    return "\n".join(f"{rate.what:<{width}}  {rate.images_per_s:>9.0f} images/s" for rate in rates)


def _rate(what: str, load: Callable, items: list, seconds: float) -> Rate:
    start = time.perf_counter()
    for done, item in enumerate(itertools.cycle(items), start=1):
        with contextlib.suppress(UnreadableImage):
            load(item)
        if (passed := time.perf_counter() - start) >= seconds:
            return Rate(what, done / passed)
    return Rate(what, 0.0)


def _loader_rates(what: str, loader: AttentionLoader, seconds: float) -> list[Rate]:
    """All images, and the probes among them. Over whole galleries, and without the first one's batches: they wait for
    the worker processes to start."""
    images = probes = 0
    start: float | None = None
    try:
        while True:
            for batch in loader:
                if not loader.between_steps_of_a_gallery and start is None:
                    start = time.perf_counter()
                    continue
                if start is None:
                    continue
                probes += len(batch.probe)
                images += len(batch.probe) + batch.gallery.flatten(0, -4).shape[0] + len(batch.negatives)
                if loader.between_steps_of_a_gallery:
                    continue
                if (passed := time.perf_counter() - start) >= seconds:
                    return [Rate(what, images / passed), Rate(f"{what}, probes", probes / passed)]
    finally:
        loader.close()

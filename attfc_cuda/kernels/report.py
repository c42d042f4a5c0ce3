"""What the Triton kernels compile to: one row per kernel, dtype and architecture. Needs no GPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from attfc_cuda.kernels.compiled import ARCHITECTURES, merge_resources, sweep_resources
from attfc_cuda.kernels.configs import choose
from attfc_cuda.kernels.sweep import DTYPES

_COLUMNS = {
    "kernel": "kernel",
    "dtype": "dtype",
    "architecture": "arch",
    "dim": "D",
    "tile": "tile",
    "registers": "registers",
    "spill_bytes": "spill B",
    "shared_bytes": "shared B",
    "mma_in_loop": "mma in loop",
    "occupancy": "occupancy",
}


def rows(
    architectures: Iterable[int] = ARCHITECTURES,
    dtypes: Iterable[torch.dtype] = DTYPES,
    dims: Iterable[int] = (512,),
) -> list[dict[str, object]]:
    """One dictionary per kernel, dtype, architecture and D, with the keys of the printed columns and `shared_limit`.

    The sweep is the modulated one with gradient, skipping unless float32, as a head calls it in training; tile is
    rows x centres / warps / stages. spill_bytes a thread, shared_bytes a block, occupancy in 0..1. About five seconds a
    row on one core, cached by Triton afterwards.
    """
    result: list[dict[str, object]] = []
    dtypes, dims = tuple(dtypes), tuple(dims)
    for architecture in architectures:
        for dim in dims:
            for dtype in dtypes:
                config = choose(architecture, dtype, dim)
                tile = f"{config.block_b}x{config.block_s}/{config.num_warps}/{config.num_stages}"
                resources = sweep_resources(architecture, dtype, dim, may_omit=dtype != torch.float32)
                result.append(
                    _row("triton sweep", str(dtype).removeprefix("torch."), architecture, dim, tile, resources)
                )
            result.append(_row("triton merge", "float32", architecture, dim, "1/4", merge_resources(architecture, dim)))
    return result


def print_table(table: list[dict[str, object]] | None = None) -> None:
    """Print `rows()`, or the rows given, aligned in columns."""
    table = rows() if table is None else table
    lines = [list(_COLUMNS.values())]
    lines += [[_text(row[key]) for key in _COLUMNS] for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _row(kernel: str, dtype: str, architecture: int, dim: int, tile: str, resources: object) -> dict[str, object]:
    named = {"kernel": kernel, "dtype": dtype, "architecture": f"sm_{architecture}", "dim": dim, "tile": tile}
    return {**named, **vars(resources)}


def _text(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)

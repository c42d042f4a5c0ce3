"""What the Triton kernels compile to: one row per kernel, dtype and architecture. Needs no GPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from attfc_cuda.ops.resources.triton_compile import (
    ARCHITECTURES,
    Resources,
    center_gradient_resources,
    merge_resources,
    sweep_resources,
)
from attfc_cuda.ops.resources.triton_head_step import KERNELS, head_step_resources
from attfc_cuda.ops.triton.configs import DTYPES, Config, choose, choose_center_gradient

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

    The sweep is the modulated one with gradient, skipping unless float32, as a head calls it in training, the centre
    gradient the modulated one of raw centres, the kernels of the head step those of bfloat16 embeddings and container;
    tile is rows x centres / warps / stages. spill_bytes a thread, shared_bytes a block, occupancy in 0..1. One to five
    seconds a row on one core, cached by Triton afterwards.
    """
    result: list[dict[str, object]] = []
    dtypes, dims = tuple(dtypes), tuple(dims)
    for architecture in architectures:
        for dim in dims:
            for dtype in dtypes:
                tile = _tile(choose(architecture, dtype, dim))
                resources = sweep_resources(architecture, dtype, dim, may_omit=dtype != torch.float32)
                result.append(_row("triton sweep", dtype, architecture, dim, tile, resources))
            for dtype in dtypes:
                tile = _tile(choose_center_gradient(architecture, dtype, dim))
                resources = center_gradient_resources(architecture, dtype, dim)
                result.append(_row("triton center gradient", dtype, architecture, dim, tile, resources))
            merge = merge_resources(architecture, dim)
            result.append(_row("triton merge", torch.float32, architecture, dim, "1/4", merge))
            for name, (_, _, warps, _) in KERNELS.items():
                resources = head_step_resources(architecture, name, torch.bfloat16, dim)
                result.append(_row(f"triton {name}", torch.bfloat16, architecture, dim, f"-/{warps}", resources))
    return result


def print_table(table: list[dict[str, object]] | None = None) -> None:
    """Print `rows()`, or the rows given, aligned in columns."""
    table = rows() if table is None else table
    lines = [list(_COLUMNS.values())]
    lines += [[_text(row[key]) for key in _COLUMNS] for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _tile(config: Config) -> str:
    return f"{config.block_b}x{config.block_s}/{config.num_warps}/{config.num_stages}"


def _row(
    kernel: str, dtype: torch.dtype, architecture: int, dim: int, tile: str, resources: Resources
) -> dict[str, object]:
    name = str(dtype).removeprefix("torch.")
    named = {"kernel": kernel, "dtype": name, "architecture": f"sm_{architecture}", "dim": dim, "tile": tile}
    return {**named, **vars(resources)}


def _text(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)

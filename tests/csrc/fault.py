"""A fault that faults.py plants in the CUDA sources."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    build: str
    file: str  # under csrc/cuda, or ../partial_lse.h
    old: str
    new: str
    cases: tuple[str, ...] = ("shape.3x99",)
    unit: str = "sweep_d128"  # the translation unit to compile anew
    seeds: int = 2
    test: str = "sweep_test"

    @property
    def label(self) -> str:
        return f"{self.test.removesuffix('_test')}.{self.name}"

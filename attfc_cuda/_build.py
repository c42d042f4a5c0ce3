"""What the compiled extension is made of: one list for setup.py and for the build at first use.

Imports nothing of the package, so that setup.py can load it by path where torch may be absent.
"""

from __future__ import annotations

import sys
from pathlib import Path


def source_root(package: Path) -> Path | None:
    """The folder csrc: inside an installed package, beside an editable one; None where neither is there."""
    for candidate in (package / "_csrc", package.parent / "csrc"):
        if (candidate / "ops" / "register.cpp").is_file():
            return candidate
    return None


def cpu_sources(csrc: Path) -> list[Path]:
    return sorted([*(csrc / "ops").glob("*.cpp"), *(csrc / "cpu").glob("*.cpp")])


def compile_flags() -> list[str]:
    flags = ["-O3", "-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"]
    if sys.platform == "linux":
        # Compiled for OpenMP but not linked with it: at::parallel_for then runs on the OpenMP runtime that libtorch
        # brings, in torch's own pool, instead of on a second one.
        flags.append("-fopenmp")
    return flags

"""What the two compiled extensions are made of: one list for setup.py and for the builds at first use.

attfc_cuda._C is the operators on the CPU; attfc_cuda._C_cuda adds those on CUDA devices, where a CUDA toolkit is found.
Two modules, so that the first needs no toolkit and does not fall with the second.

Imports nothing of the package, so that setup.py can load it by path where torch may be absent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the kernels are compiled for when nothing else is asked for: every generation from the first that can run them.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")
FORCE = "ATTFC_FORCE_CUDA"
_OLDEST = (8, 0)  # mma.sync for bfloat16, cp.async


def source_root(package: Path) -> Path | None:
    """The folder csrc: inside an installed package, beside an editable one; None where neither is there."""
    for candidate in (package / "_csrc", package.parent / "csrc"):
        if (candidate / "ops" / "register.cpp").is_file():
            return candidate
    return None


def cpu_sources(csrc: Path) -> list[Path]:
    ops = (path for path in (csrc / "ops").glob("*.cpp") if not path.stem.endswith("_cuda"))
    return sorted([*ops, *(csrc / "cpu").glob("*.cpp")])


def cuda_sources(csrc: Path) -> list[Path]:
    return sorted([*(csrc / "ops").glob("*_cuda.cpp"), *(csrc / "cuda").glob("*.cu")])


def compile_flags() -> list[str]:
    flags = ["-O3", "-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"]
    if sys.platform == "linux":
        # Compiled for OpenMP but not linked with it: at::parallel_for then runs on the OpenMP runtime that libtorch
        # brings, in torch's own pool, instead of on a second one.
        flags.append("-fopenmp")
    return flags


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the folder that holds bin/nvcc and include/, and its version, such as "13.0"."""

    home: Path
    version: str

    @property
    def nvcc(self) -> str:
        return str(self.home / "bin" / "nvcc")


@dataclass(frozen=True)
class CudaBuild:
    """How attfc_cuda._C_cuda is compiled. architectures: as TORCH_CUDA_ARCH_LIST names them."""

    toolkit: Toolkit
    architectures: tuple[str, ...]

    def cxx_flags(self) -> list[str]:
        names = {
            "TOOLKIT": self.toolkit.version,
            "ARCHITECTURES": ",".join(self.architectures),
            "HAS_SM90A": int(any(_number(name) == (9, 0) for name in self.architectures)),
        }
        return [*compile_flags(), *(f"-DATTFC_CUDA_{name}={value}" for name, value in names.items())]

    def nvcc_flags(self) -> list[str]:
        flags = ["-O3", "-std=c++17"]
        for name in self.architectures:
            number = name.removesuffix("+PTX").replace(".", "")
            # Hopper's own instructions (csrc/cuda/gpu/sm90.h) are in 9.0a alone, and 9.0 is the only Hopper there is.
            binary = "90a" if number == "90" else number
            flags.append(f"-gencode=arch=compute_{binary},code=sm_{binary}")
            if name.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def plan_cuda_build(torch_cuda: str | None, capabilities: Iterable[tuple[int, int]]) -> CudaBuild | str:
    """How to build the CUDA extension, or the reason why it is not built.

    Without a device nothing is built unless the variable ATTFC_FORCE_CUDA is 1; where it is 0, never. Architectures:
    TORCH_CUDA_ARCH_LIST, else those of the devices, else `ARCHITECTURES`, as far as the toolkit knows them.

    Args:
        torch_cuda: torch.version.cuda.
        capabilities: of the CUDA devices that torch sees.

    Raises:
        ValueError: for variables that cannot be read.
        RuntimeError: with the reason where ATTFC_FORCE_CUDA is 1.
    """
    force = os.environ.get(FORCE, "")
    if force not in ("", "0", "1"):
        raise ValueError(f"attfc_cuda: {FORCE} must be 0, 1 or unset, got {force!r}")
    capabilities = sorted(set(capabilities))
    if force == "0":
        return f"{FORCE} is 0"
    if not capabilities and force != "1":
        return f"no GPU is visible; {FORCE}=1 builds it all the same"
    planned = _plan(torch_cuda, capabilities)
    if isinstance(planned, str) and force == "1":
        raise RuntimeError(f"attfc_cuda: the CUDA extension must be buildable where {FORCE} is 1, got: {planned}")
    return planned


def _plan(torch_cuda: str | None, capabilities: list[tuple[int, int]]) -> CudaBuild | str:
    if torch_cuda is None:
        return "this build of torch has no CUDA"
    toolkit = find_toolkit(torch_cuda)
    if isinstance(toolkit, str):
        return toolkit
    known = _known_architectures(toolkit)
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked and asked != "native":
        names: list[str | None] = [*_parse_architectures(asked)]
    elif capabilities:
        names = [_best_for(capability, known) for capability in capabilities]
    else:
        names = [name for name in ARCHITECTURES if _number(name) in known]
    kept = tuple(dict.fromkeys(name for name in names if name and _number(name) >= _OLDEST))
    if not kept:
        what = asked or ", ".join(f"{major}.{minor}" for major, minor in capabilities) or f"nvcc {toolkit.version}"
        return f"the kernels need compute capability 8.0 or later, got {what}"
    return CudaBuild(toolkit, kept)


def find_toolkit(torch_cuda: str) -> Toolkit | str:
    """The toolkit to compile with, or why there is none: CUDA_HOME if set, else nvcc on PATH, else /usr/local/cuda*.

    torch finds its toolkit from where nvcc lies; a wrapper script on PATH misleads it. Here nvcc itself is asked. The
    major version must be that of torch's own CUDA.
    """
    seen = []
    for home in dict.fromkeys(path.resolve() for path in _candidates()):
        toolkit = _toolkit_at(home)
        if toolkit is None:
            continue
        if toolkit.version.split(".")[0] == torch_cuda.split(".")[0]:
            return toolkit
        seen.append(f"{toolkit.version} in {home}")
    if seen:
        return f"torch has CUDA {torch_cuda}, and the toolkit found is {', '.join(seen)}"
    named = os.environ.get("CUDA_HOME")
    return f"no CUDA toolkit in CUDA_HOME = {named}" if named else "no CUDA toolkit found (nvcc and its headers)"


def _candidates() -> Iterator[Path]:
    if os.environ.get("CUDA_HOME"):
        yield Path(os.environ["CUDA_HOME"])
        return
    on_path = shutil.which("nvcc")
    if on_path:
        steps = _output([on_path, "--dryrun", "-x", "cu", os.devnull])
        top = re.search(r"^#\$ TOP=(.+)$", steps, re.MULTILINE)
        if top:
            yield Path(top.group(1).strip())
        yield Path(on_path).resolve().parent.parent
    yield from sorted(Path("/usr/local").glob("cuda*"), reverse=True)


def _toolkit_at(home: Path) -> Toolkit | None:
    if not (home / "bin" / "nvcc").is_file() or not (home / "include" / "cuda_runtime_api.h").is_file():
        return None
    release = re.search(r"release (\d+\.\d+)", _output([str(home / "bin" / "nvcc"), "--version"]))
    return Toolkit(home, release.group(1)) if release else None


def _known_architectures(toolkit: Toolkit) -> set[tuple[int, int]]:
    numbers = re.findall(r"compute_(\d+)", _output([toolkit.nvcc, "--list-gpu-arch"]))
    return {(int(number[:-1]), int(number[-1])) for number in numbers}


def _output(command: list[str]) -> str:
    """stdout and stderr together; empty where the command cannot be run."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _parse_architectures(text: str) -> list[str]:
    names = [name for name in re.split(r"[;, ]+", text) if name]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise ValueError(f"attfc_cuda: TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0 or 9.0+PTX, got {name!r}")
    return names


def _number(name: str) -> tuple[int, int]:
    major, _, rest = name.partition(".")
    return int(major), int(rest[0])


def _best_for(capability: tuple[int, int], known: set[tuple[int, int]]) -> str | None:
    """The newest architecture that such a device runs: its own generation's code, else an older one's PTX."""
    usable = [number for number in known if number <= capability]
    if not usable:
        return None
    major, minor = max(usable)
    return f"{major}.{minor}" + ("" if major == capability[0] else "+PTX")


def runs_on(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of `architectures` runs on a device: same generation and not newer, or PTX not newer.

    Code for 10.0a, PTX or not, runs on 10.0 alone; for 10.0f on its generation (CUDA C++ Programming Guide, "Feature
    set compiler targets").
    """
    return any(_runs_on(name, capability) for name in architectures)


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    number, plain = _number(name), name.removesuffix("+PTX")
    if plain.endswith("a"):
        return number == capability
    any_generation = name.endswith("+PTX") and not plain.endswith("f")
    return number <= capability and (any_generation or number[0] == capability[0])


@contextlib.contextmanager
def torch_uses(toolkit: Toolkit, cpp_extension: Any) -> Iterator[None]:
    """Makes torch.utils.cpp_extension build with `toolkit` instead of the one that it found by itself."""
    found, cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME, str(toolkit.home)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = found

"""Which implementation of the operators is there, why another is not, and which one a call uses.

Importing this module loads nothing. The compiled extension is loaded at the first call that can use it: the one built
at installation, or else one that is built then, once, with a line on stderr, and cached by torch. A failure is
remembered and told with both reasons.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

import torch

from attfc_cuda import _build, _ops
from attfc_cuda._check import error

BACKENDS = ("reference", "cpu", "triton", "cuda")
_PACKAGE = Path(__file__).resolve().parent
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = {"cpu": (*_GPU_DTYPES, torch.float64), "triton": _GPU_DTYPES, "cuda": _GPU_DTYPES}


class _Loaded:
    """The extension module and where it came from, or the reasons why there is none."""

    def __init__(self, module: ModuleType | None, origin: str, reasons: list[str]) -> None:
        self.module, self.origin, self.reasons = module, origin, reasons


def _prebuilt() -> ModuleType:
    return importlib.import_module("attfc_cuda._C")


def _build_now() -> ModuleType:
    from torch.utils import cpp_extension

    csrc = _build.source_root(_PACKAGE)
    if csrc is None:
        raise FileNotFoundError(f"no C++ sources beside {_PACKAGE}")
    print(
        "attfc_cuda: compiling the CPU extension for its first use (about a minute, then cached) ...", file=sys.stderr
    )
    return cpp_extension.load(
        name="attfc_cuda_C",
        sources=[str(path) for path in _build.cpu_sources(csrc)],
        extra_cflags=_build.compile_flags(),
        verbose=os.environ.get("ATTFC_DEBUG") == "1",
    )


def _reason(step: str, exception: Exception) -> str:
    text = "".join(traceback.format_exception_only(exception)).strip()
    return f"{step}: {text}"


@functools.cache
def _extension() -> _Loaded:
    reasons = []
    for step, load, origin in (
        ("import of the installed extension", _prebuilt, "built at installation"),
        ("build at first use", _build_now, "built at first use"),
    ):
        try:
            module = load()
        except Exception as exception:  # whatever fails in a stranger's tool chain is a reason to tell, not to die of
            reasons.append(_reason(step, exception))
            continue
        _ops.register()
        return _Loaded(module, origin, reasons)
    return _Loaded(None, "", reasons)


@functools.cache
def _triton_reason() -> str | None:
    """Makes the Triton kernels the operator's implementation on CUDA devices; the reason where that cannot be."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not _extension().module:
        return f"the operator comes with the extension: {'; '.join(_extension().reasons)}"
    try:
        from attfc_cuda.kernels.sweep import negative_logsumexp_forward
    except ImportError as exception:
        return _reason("import of Triton", exception)
    _ops.register_kernel("negative_logsumexp", "cuda", negative_logsumexp_forward)
    return None


def why_not(name: str) -> str | None:
    """Why backend ``name`` cannot be used on this machine; None where it can."""
    if name == "reference":
        return None
    if name == "cpu":
        loaded = _extension()
        return None if loaded.module else "; ".join(loaded.reasons)
    if name == "triton":
        return _triton_reason()
    if name == "cuda":
        return "the kernels in csrc/cuda are not part of the extension"
    raise error("attfc_cuda", "backend", f"be one of {', '.join(('auto', *BACKENDS))}", repr(name))


def available(name: str) -> bool:
    """True where backend ``name`` can be used on this machine. Loads, and if need be builds, the extension."""
    return why_not(name) is None


@functools.cache
def _tell_fallback(name: str, reason: str) -> None:
    print(f"attfc_cuda: backend {name} is not available ({reason}); using the slower reference", file=sys.stderr)


@torch.compiler.assume_constant_result
def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that a call on ``device`` uses. ``auto`` (then the variable ATTFC_BACKEND, if set, decides) takes the
    fastest that runs there and says so where that is not the usual one; a named backend that cannot run raises."""
    wanted = backend if backend != "auto" else os.environ.get("ATTFC_BACKEND", "auto")
    if wanted == "auto":
        usual = "cpu" if device.type == "cpu" else "triton"
        reason = _unfit(usual, device, dtype)
        if reason is None:
            return usual
        _tell_fallback(usual, reason)
        return "reference"
    reason = _unfit(wanted, device, dtype)
    if reason is not None:
        raise RuntimeError(f"attfc_cuda: backend {wanted} must be available, got: {reason}")
    return wanted


def _unfit(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why backend ``name`` cannot run tensors of this device and dtype; None where it can."""
    reason = why_not(name)
    if reason is not None or name == "reference":
        return reason
    wanted_device = "cpu" if name == "cpu" else "cuda"
    if device.type != wanted_device:
        return f"its tensors must be on {wanted_device}, got {device}"
    if dtype not in _DTYPES[name]:
        return f"it has no kernel for {dtype}"
    return None


def build_config() -> dict[str, object]:
    """What the loaded extension was built with: compiler, instruction set in use, OpenMP, origin. Empty without one."""
    loaded = _extension()
    return {"origin": loaded.origin, **loaded.module.build_config()} if loaded.module else {}


def info() -> str:
    """The report of ``attfc info``: versions, each backend and why not, and what ``auto`` uses on each device."""
    from attfc_cuda import __version__

    lines = [
        f"attfc_cuda {__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
        f"threads {torch.get_num_threads()}, CPU capability of torch {torch.backends.cpu.get_cpu_capability()}",
    ]
    for name in BACKENDS:
        reason = why_not(name)
        lines.append(f"  {name:<10} " + ("available" if reason is None else f"not available: {reason}"))
    for key, value in build_config().items():
        lines.append(f"  built: {key} = {value}")
    lines.append(f"on cpu, auto uses: {resolve('auto', torch.device('cpu'), torch.float32)}")
    if torch.cuda.is_available():
        device = torch.device("cuda")
        lines.append(f"on {torch.cuda.get_device_name()}, auto uses: {resolve('auto', device, torch.bfloat16)}")
    return "\n".join(lines)

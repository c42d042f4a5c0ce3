"""Which implementation of the operators is there, why another is not, and which one a call uses.

Importing this module loads nothing. A compiled extension is loaded at the first call that can use it: the one built
at installation, or else one that is built then, once, with a line on stderr, and cached by torch. A failure is
remembered and told with both reasons.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda._deprecated import current_backend
from attfc_cuda.ops import autograd, build, head_step
from attfc_cuda.ops.precision import PRECISIONS, slow_precision

BACKENDS = ("eager", "cpu", "triton", "cuda")
# Those with kernels for the steps of a head around the sweep (head_step.py).
WITH_HEAD_STEP = ("cpu", "triton", "cuda")
# What `auto` takes on a type of device: the first that can run the call. Eager runs everywhere.
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_PACKAGE = Path(__file__).resolve().parents[1]
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ALIGNMENT = 16  # bytes that the CUDA kernels copy at once


class _Loaded:
    """An extension module and where it came from, or the reasons why there is none."""

    def __init__(self, module: ModuleType | None, origin: str, reasons: list[str]) -> None:
        self.module, self.origin, self.reasons = module, origin, reasons


def _prebuilt(name: str) -> ModuleType:
    return importlib.import_module(f"attfc_cuda.{name}")


def _sources() -> Path:
    csrc = build.source_root(_PACKAGE)
    if csrc is None:
        raise FileNotFoundError(f"no C++ sources beside {_PACKAGE}")
    return csrc


def _tell_build(what: str, minutes: str) -> None:
    print(f"attfc_cuda: compiling the {what} for its first use ({minutes}, then cached) ...", file=sys.stderr)


def _build_cpu() -> ModuleType:
    from torch.utils import cpp_extension

    sources = build.cpu_sources(_sources())
    _tell_build("CPU extension", "about a minute")
    return cpp_extension.load(
        name="attfc_cuda_C",
        sources=[str(path) for path in sources],
        extra_cflags=build.compile_flags(),
        verbose=os.environ.get("ATTFC_DEBUG") == "1",
    )


def _plan_cuda() -> build.CudaBuild | str:
    return build.plan_cuda_build(torch.version.cuda, _capabilities())


def _build_cuda() -> ModuleType:
    from torch.utils import cpp_extension

    plan = _plan_cuda()
    if isinstance(plan, str):
        raise RuntimeError(plan)
    sources = build.cuda_sources(_sources())
    _tell_build(f"CUDA extension for {', '.join(plan.architectures)}", "a minute or two")
    with build.torch_uses(plan.toolkit, cpp_extension):
        return cpp_extension.load(
            name="attfc_cuda_C_cuda",
            sources=[str(path) for path in sources],
            extra_cflags=plan.cxx_flags(),
            extra_cuda_cflags=plan.nvcc_flags(),
            with_cuda=True,
            verbose=os.environ.get("ATTFC_DEBUG") == "1",
        )


def _reason(step: str, exception: Exception) -> str:
    text = "".join(traceback.format_exception_only(exception)).strip()
    return f"{step}: {text}"


def _load(name: str, build_it: Callable[[], ModuleType]) -> _Loaded:
    reasons: list[str] = []
    for step, load, origin in (
        ("import of the installed extension", functools.partial(_prebuilt, name), "built at installation"),
        ("build at first use", build_it, "built at first use"),
    ):
        try:
            return _Loaded(load(), origin, reasons)
        except Exception as exception:  # whatever fails in a stranger's tool chain is a reason to tell, not to die of
            reasons.append(_reason(step, exception))
    return _Loaded(None, "", reasons)


@functools.cache
def _extension() -> _Loaded:
    loaded = _load("_C", _build_cpu)
    if loaded.module:
        autograd.register()
        head_step.register()
    return loaded


@functools.cache
def _cuda_extension() -> _Loaded:
    loaded = _load("_C_cuda", _build_cuda)
    if loaded.module:
        autograd.register("_cuda")
    return loaded


@functools.cache
def _triton_reason() -> str | None:
    """Makes the Triton kernels the operators' implementation on CUDA devices; the reason where that cannot be."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not _extension().module:
        return f"the operator comes with the extension: {'; '.join(_extension().reasons)}"
    try:
        from attfc_cuda.ops.triton import head_step as triton_head_step
        from attfc_cuda.ops.triton.center_gradient import center_gradient_forward
        from attfc_cuda.ops.triton.sweep import negative_logsumexp_forward
    except ImportError as exception:
        return _reason("import of Triton", exception)
    autograd.register_kernel("negative_logsumexp", "cuda", negative_logsumexp_forward)
    autograd.register_kernel("center_gradient", "cuda", center_gradient_forward)  # type: ignore[arg-type]
    head_step.register_triton(triton_head_step.KERNELS, "cuda")
    return None


def _cuda_reason() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    loaded = _cuda_extension()
    return None if loaded.module else "; ".join(loaded.reasons)


def why_not(name: str) -> str | None:
    """Why backend ``name`` cannot be used on this machine; None where it can."""
    name = current_backend(name)
    if name == "eager":
        return None
    if name == "cpu":
        loaded = _extension()
        return None if loaded.module else "; ".join(loaded.reasons)
    if name == "triton":
        return _triton_reason()
    if name == "cuda":
        return _cuda_reason()
    raise error("attfc_cuda", "backend", f"be one of {', '.join(('auto', *BACKENDS))}", repr(name))


@torch.compiler.assume_constant_result
def enqueues(device_type: str) -> bool:
    """Whether a container on such a device takes its rows by kernels whatever the sweep's backend."""
    return device_type == "cpu" and why_not("cpu") is None


def available(name: str) -> bool:
    """True where backend ``name`` can be used on this machine. Loads, and if need be builds, the extension."""
    return why_not(name) is None


@functools.cache
def _tell_fallback(name: str, reason: str, instead: str) -> None:
    print(f"attfc_cuda: backend {name} is not available ({reason}); using the slower {instead}", file=sys.stderr)


def choose(backend: str, embeddings: Tensor, centers: Tensor, dtype: torch.dtype | None = None) -> str:
    """The backend that a call with these tensors uses; dtype: of the products, if it is not that of `embeddings`."""
    dtype = embeddings.dtype if dtype is None else dtype
    # In code compiled for any shape, index() is what makes D a number again: there are kernels for some D only.
    dim = operator.index(embeddings.shape[1])
    return resolve(backend, embeddings.device, dtype, dim, _aligned(embeddings, centers))


@torch.compiler.assume_constant_result
def resolve(backend: str, device: torch.device, dtype: torch.dtype, dim: int, aligned: bool = True) -> str:
    """The backend that a call on ``device`` uses. ``auto`` (then the variable ATTFC_BACKEND, if set, decides) takes the
    fastest that can run the call; a named backend that cannot raises RuntimeError with the reason.

    dtype: of the products; dim: D. aligned: whether all rows start at multiples of 16 bytes.
    ``auto`` says so, once, where it leaves a backend out for a reason that lies with the machine or the addresses. That
    a backend has no kernel for a dtype or D is no news: `attfc info` lists it.
    """
    wanted = current_backend(backend if backend != "auto" else os.environ.get("ATTFC_BACKEND", "auto"))
    if wanted != "auto":
        reason = _unfit(wanted, device, dtype, dim, aligned)
        if reason is not None:
            raise RuntimeError(f"attfc_cuda: backend {wanted} must be available, got: {reason}")
        return wanted
    left_out = {}
    for name in (*_PREFERRED.get(device.type, ()), "eager"):
        reason = _unfit(name, device, dtype, dim, aligned)
        if reason is None:
            break
        left_out[name] = reason
    for each, reason in left_out.items():
        if name == "eager" or why_not(each) is not None or not aligned:
            _tell_fallback(each, reason, name)
    return name


def _unfit(name: str, device: torch.device, dtype: torch.dtype, dim: int, aligned: bool) -> str | None:
    """Why backend ``name`` cannot run such tensors; None where it can."""
    reason = why_not(name)
    if reason is not None or name == "eager":
        return reason
    wanted_device = "cpu" if name == "cpu" else "cuda"
    if device.type != wanted_device:
        return f"its tensors must be on {wanted_device}, got {device}"
    if name == "cpu":
        return None if dtype in _CPU_DTYPES else f"it has no kernel for {dtype}"
    if name == "triton":
        from attfc_cuda.ops.triton import configs

        return configs.why_not(dtype, dim)
    if dtype == torch.float64:  # which the kernels do not even have a name for
        return f"it has no kernel for {dtype}"
    reason = _cuda_device_reason(_device_index(device), dtype, dim)
    if reason is None and not aligned:
        reason = f"rows of embeddings and centers must start at multiples of {_ALIGNMENT} bytes"
    return reason


@functools.cache
def _cuda_device_reason(index: int, dtype: torch.dtype, dim: int) -> str | None:
    """Why the CUDA kernels do not run on a device; the words are those of csrc/cuda's why_not."""
    module = _cuda_extension().module
    capability, shared_bytes = module.device_limits(index)
    built = module.build_config()["architectures"].split(",")
    reason = module.why_not(capability, shared_bytes, str(dtype).removeprefix("torch."), dim)
    if reason is None and not build.runs_on(built, divmod(capability, 10)):
        return f"it was compiled for {', '.join(built)}, and the device has {capability / 10}"
    return reason


def _aligned(*matrices: Tensor) -> bool:
    """Whether each row starts at a multiple of 16 bytes. Taken for granted where a tensor has no address, in compiled
    and transformed code: the operator then makes a copy of operands that are not aligned."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return all(
        x.data_ptr() % _ALIGNMENT == 0 and x.stride(0) * x.element_size() % _ALIGNMENT == 0
        for x in matrices
        if type(x) in (Tensor, torch.nn.Parameter)
    )


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _capabilities() -> list[tuple[int, int]]:
    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def build_config() -> dict[str, object]:
    """What the loaded extension was built with: compiler, instruction set in use, OpenMP, origin. Empty without one."""
    loaded = _extension()
    return {"origin": loaded.origin, **loaded.module.build_config()} if loaded.module else {}


def cuda_build_config() -> dict[str, object]:
    """What the CUDA extension was built with: toolkit, architectures, origin; without one {"not built": reason}.

    Without a CUDA device the extension is loaded if it was built at installation, never built.
    """
    if torch.cuda.is_available() or _cuda_extension.cache_info().currsize:
        loaded = _cuda_extension()
        if loaded.module is None:
            return {"not built": "; ".join(loaded.reasons)}
        return {"origin": loaded.origin, **loaded.module.build_config()}
    with contextlib.suppress(ImportError):
        return {"origin": "built at installation", **_prebuilt("_C_cuda").build_config()}
    plan = _plan_cuda()
    if isinstance(plan, str):
        return {"not built": plan}
    return {"not built": f"not at installation; would be compiled for {', '.join(plan.architectures)}"}


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
    for extension, config in (("cpu", build_config()), ("cuda", cuda_build_config())):
        lines += [f"  {extension} extension: {key} = {value}" for key, value in config.items()]
    chosen = resolve("auto", torch.device("cpu"), torch.float32, 512)
    lines.append(f"on cpu, auto uses: {chosen}, {_head_step(chosen)}")
    lines += _slow_precisions(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        lines += _device_lines(torch.device("cuda", index))
        lines += _slow_precisions(torch.device("cuda", index))
    return "\n".join(lines)


def _slow_precisions(device: torch.device) -> list[str]:
    found = (slow_precision(precision, device) for precision in PRECISIONS)
    return [f"  {text}" for text in found if text is not None]


def _cuda_passes(device: torch.device) -> str:
    """In how many passes the CUDA kernels sweep on a device, and why; by the model of csrc/README.md, not measured."""
    module = _cuda_extension().module
    reason = module.why_one_pass(*module.device_limits(_device_index(device)), 2.0**-12)
    return "two passes where grad_tolerance is above 0" if reason is None else f"one pass: {reason}"


def _head_step(backend: str) -> str:
    """How an AttFC head with AdaSin takes its step with a backend."""
    if backend in WITH_HEAD_STEP:
        return "head step fused"
    return f"head step one operator at a time ({backend} has no kernels for it)"


def _device_lines(device: torch.device) -> list[str]:
    """What auto uses on a CUDA device for the usual D, one D that is not, and each dtype; and why not the first."""
    lines = [f"on {device} ({torch.cuda.get_device_name(device)}), auto uses:"]
    for dim, dtype in ((512, torch.bfloat16), (512, torch.float16), (512, torch.float32), (320, torch.bfloat16)):
        chosen = resolve("auto", device, dtype, dim)
        reason = _unfit(_PREFERRED["cuda"][0], device, dtype, dim, True)
        why = f"  ({_cuda_passes(device)})" if chosen == "cuda" else "" if reason is None else f"  (cuda: {reason})"
        lines.append(f"  D {dim}, {str(dtype).removeprefix('torch.')}: {chosen}, {_head_step(chosen)}{why}")
    return lines

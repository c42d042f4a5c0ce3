"""Which backend a call uses, and what is said when that is another than asked for."""

import subprocess
import sys

import pytest
import torch

from attfc_cuda import _backend, _ops

CPU = torch.device("cpu")


def test_auto_on_the_cpu_is_the_compiled_sweep():
    if not _backend.available("cpu"):
        pytest.skip(f"the CPU extension could not be built: {_backend.why_not('cpu')}")
    assert _backend.resolve("auto", CPU, torch.bfloat16) == "cpu"


def test_the_variable_decides_for_auto_only(monkeypatch):
    monkeypatch.setenv("ATTFC_BACKEND", "reference")
    assert _backend.resolve("auto", CPU, torch.float32) == "reference"
    monkeypatch.setenv("ATTFC_BACKEND", "nonsense")
    assert _backend.resolve("reference", CPU, torch.float32) == "reference"
    with pytest.raises(ValueError, match="attfc_cuda: backend must be one of auto, reference, cpu, triton, cuda, got"):
        _backend.resolve("auto", CPU, torch.float32)


def test_a_named_backend_runs_or_raises():
    with pytest.raises(RuntimeError, match="attfc_cuda: backend cuda must be available, got: "):
        _backend.resolve("cuda", CPU, torch.float32)
    message = "its tensors must be on cuda" if torch.cuda.is_available() else "torch sees no CUDA device"
    with pytest.raises(RuntimeError, match=f"attfc_cuda: backend triton must be available, got: {message}"):
        _backend.resolve("triton", CPU, torch.float32)


def test_a_fallback_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(_backend, "why_not", lambda name: "no compiler" if name == "cpu" else None)
    _backend._tell_fallback.cache_clear()
    try:
        for _ in range(2):
            assert _backend.resolve("auto", CPU, torch.float32) == "reference"
    finally:
        _backend._tell_fallback.cache_clear()
    told = "attfc_cuda: backend cpu is not available (no compiler); using the slower reference\n"
    assert capsys.readouterr().err == told


def test_both_reasons_are_kept_when_nothing_can_be_loaded(monkeypatch):
    def fail(text):
        def load():
            raise ImportError(text)

        return load

    monkeypatch.setattr(_backend, "_prebuilt", fail("no binary"))
    monkeypatch.setattr(_backend, "_build_now", fail("no compiler"))
    monkeypatch.setattr(_backend, "_extension", _backend._extension.__wrapped__)
    reason = _backend.why_not("cpu")
    assert "import of the installed extension: ImportError: no binary" in reason
    assert "build at first use: ImportError: no compiler" in reason
    assert _backend.build_config() == {}


def test_info_names_every_backend_and_the_choice():
    report = _backend.info()
    assert all(name in report for name in _backend.BACKENDS)
    assert "on cpu, auto uses: " in report


def test_importing_loads_nothing():
    """The package imports on any machine: no build, no extension, no Triton, before the first call."""
    code = (
        "import sys, attfc_cuda; "
        "print([m for m in sys.modules if m == 'attfc_cuda._C' or m.startswith('attfc_cuda.kernels')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_python_kernel_serves_its_device():
    if not _backend.available("cpu"):
        pytest.skip(f"the operator comes with the extension: {_backend.why_not('cpu')}")
    library = torch.library.Library("attfc", "FRAGMENT")
    library.define("probe(Tensor x) -> Tensor")
    _ops.register_kernel("probe", "cpu", lambda x: x + 1)
    assert torch.ops.attfc.probe(torch.zeros(2)).tolist() == [1.0, 1.0]

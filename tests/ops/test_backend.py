"""Which backend a call uses, and what is said when that is another than asked for.

The CUDA side is tested with a stand-in for its extension and devices, so that it needs neither.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from attfc_cuda import negative_logsumexp
from attfc_cuda.ops import autograd as _ops
from attfc_cuda.ops import backend as _backend

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
H100 = (90, 227 * 1024)
RTX_4090 = (89, 99 * 1024)


def fake_why_not(capability, shared_bytes, dtype, dim):
    """In the form of csrc/cuda's; the real one is asked in tests/ops/test_cuda_extension_compile.py."""
    if dtype == "float32":
        return "it takes bfloat16 and float16, not float32"
    if capability < 80:
        return "it needs compute capability 8.0 or later"
    return None if dim in (128, 256, 512) else "it is compiled for D = 128, 256 and 512"


def fake_why_one_pass(capability, shared_bytes, grad_tolerance):
    return None if capability == 90 and grad_tolerance > 0 else "wgmma and TMA need compute capability 9.0"


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one CUDA device and both GPU backends; `gpu(limits=..., architectures=...)` changes it."""

    def arrange(limits=H100, architectures="8.0,9.0", why_no_cuda=None, why_no_triton=None):
        module = SimpleNamespace(
            device_limits=lambda index: limits,
            build_config=lambda: {"architectures": architectures, "toolkit": "13.0"},
            why_not=fake_why_not,
            why_one_pass=fake_why_one_pass,
        )
        reasons = {"cuda": why_no_cuda, "triton": why_no_triton}
        monkeypatch.setattr(_backend, "why_not", lambda name: reasons.get(name))
        monkeypatch.setattr(_backend, "_cuda_extension", lambda: _backend._Loaded(module, "fake", []))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: divmod(limits[0], 10))
        _backend._cuda_device_reason.cache_clear()
        _backend._tell_fallback.cache_clear()

    yield arrange
    _backend._cuda_device_reason.cache_clear()
    _backend._tell_fallback.cache_clear()


def test_auto_on_the_cpu_is_the_compiled_sweep():
    if not _backend.available("cpu"):
        pytest.skip(f"the CPU extension could not be built: {_backend.why_not('cpu')}")
    assert _backend.resolve("auto", CPU, torch.bfloat16, 512) == "cpu"


def test_the_variable_decides_for_auto_only(monkeypatch):
    monkeypatch.setenv("ATTFC_BACKEND", "eager")
    assert _backend.resolve("auto", CPU, torch.float32, 512) == "eager"
    monkeypatch.setenv("ATTFC_BACKEND", "nonsense")
    assert _backend.resolve("eager", CPU, torch.float32, 512) == "eager"
    with pytest.raises(ValueError, match="attfc_cuda: backend must be one of auto, eager, cpu, triton, cuda, got"):
        _backend.resolve("auto", CPU, torch.float32, 512)


def test_the_old_name_of_eager_still_works(monkeypatch):
    x = torch.eye(2)
    with pytest.warns(DeprecationWarning, match="backend 'reference' is now 'eager'") as told:
        negative_logsumexp(x, x, torch.arange(2), torch.arange(2), backend="reference")
    assert [warning.filename for warning in told] == [__file__]
    monkeypatch.setenv("ATTFC_BACKEND", "reference")
    with pytest.warns(DeprecationWarning, match="is now 'eager'"):
        assert _backend.resolve("auto", CPU, torch.float32, 512) == "eager"
    with pytest.warns(DeprecationWarning, match="is now 'eager'"):
        assert _backend.available("reference")


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_named_backend_runs_or_raises(name):
    message = "its tensors must be on cuda, got cpu" if _backend.available(name) else ""
    with pytest.raises(RuntimeError, match=f"attfc_cuda: backend {name} must be available, got: {message}"):
        _backend.resolve(name, CPU, torch.float32, 512)
    x = torch.eye(2)
    with pytest.raises(RuntimeError, match=f"attfc_cuda: backend {name} must be available, got: {message}"):
        negative_logsumexp(x, x, torch.arange(2), torch.arange(2), backend=name)


@pytest.mark.parametrize(
    ("dtype", "dim", "expected"),
    [
        (torch.bfloat16, 512, "cuda"),
        (torch.float16, 128, "cuda"),
        (torch.float32, 512, "triton"),
        (torch.bfloat16, 320, "triton"),
        (torch.bfloat16, 4096, "eager"),
        (torch.float64, 512, "eager"),
    ],
)
def test_auto_on_a_gpu_takes_the_first_that_has_the_kernel(gpu, dtype, dim, expected, capsys):
    gpu()
    assert _backend.resolve("auto", CUDA, dtype, dim) == expected
    # What has no kernel is no news, unless nothing but eager is left.
    assert ("using the slower eager" in capsys.readouterr().err) == (expected == "eager")


@pytest.mark.parametrize(
    ("arranged", "expected", "told"),
    [
        ({"why_no_cuda": "no nvcc"}, "triton", "backend cuda is not available (no nvcc); using the slower triton"),
        ({"why_no_triton": "no triton"}, "cuda", ""),
        ({"why_no_cuda": "a", "why_no_triton": "b"}, "eager", "backend triton is not available (b); using the"),
        ({"limits": (75, 64 * 1024)}, "triton", ""),
        ({"limits": RTX_4090}, "cuda", ""),  # 8.9 runs what was compiled for 8.0
        ({"limits": (120, 99 * 1024)}, "triton", ""),  # nothing was compiled for it
        ({"limits": (120, 99 * 1024), "architectures": "9.0+PTX"}, "cuda", ""),
    ],
)
def test_auto_falls_back_by_machine(gpu, arranged, expected, told, capsys):
    gpu(**arranged)
    for _ in range(2):
        assert _backend.resolve("auto", CUDA, torch.bfloat16, 512) == expected
    said = capsys.readouterr().err
    assert said.count(told) == 1 if told else said == ""


@pytest.mark.parametrize(
    ("arranged", "dtype", "dim", "reason"),
    [
        ({}, torch.float32, 512, "it takes bfloat16 and float16, not float32"),
        ({}, torch.float64, 512, "it has no kernel for torch.float64"),
        ({}, torch.bfloat16, 320, "it is compiled for D = 128, 256 and 512"),
        ({"limits": (75, 64 * 1024)}, torch.float16, 512, "it needs compute capability 8.0 or later"),
        ({"limits": (100, 227 * 1024)}, torch.float16, 512, "it was compiled for 8.0, 9.0, and the device has 10.0"),
    ],
)
def test_a_named_cuda_backend_raises_with_the_reason(gpu, arranged, dtype, dim, reason):
    gpu(**arranged)
    with pytest.raises(RuntimeError) as raised:
        _backend.resolve("cuda", CUDA, dtype, dim)
    assert str(raised.value) == f"attfc_cuda: backend cuda must be available, got: {reason}"


def test_misaligned_rows_go_elsewhere_and_it_is_said(gpu, capsys):
    gpu()
    assert _backend.resolve("auto", CUDA, torch.bfloat16, 512, False) == "triton"
    assert "must start at multiples of 16 bytes); using the slower triton" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="rows of embeddings and centers must start at multiples of 16 bytes"):
        _backend.resolve("cuda", CUDA, torch.bfloat16, 512, False)


@pytest.mark.parametrize(
    ("view", "aligned"),
    [
        (lambda x: x, True),
        (lambda x: x[1:], True),
        (lambda x: x[:, 8:136], True),
        (lambda x: x[:, 1:129], False),  # the first row starts 2 bytes late
        (lambda x: x.flatten()[: 10 * 132].view(10, 132)[:, :128], False),  # every second row 8 bytes off
    ],
)
def test_alignment_is_read_off_the_tensors(view, aligned):
    x = view(torch.zeros(16, 144, dtype=torch.bfloat16))
    assert _backend._aligned(x) == aligned
    seen = []
    compiled = torch.compile(lambda x: seen.append(_backend._aligned(x)) or x + 1, backend="eager")
    compiled(x)
    assert seen == [True]  # the address of a traced tensor is not known; the operator copies


def test_the_choice_is_a_constant_of_a_graph_for_any_shape(monkeypatch):
    """D decides among backends, so a graph with symbolic shapes must take its number; B and S stay symbolic."""
    seen = []
    monkeypatch.setattr(_backend, "why_not", lambda name: None)
    resolved = _backend.resolve

    @torch.compiler.assume_constant_result
    def resolve(*arguments):
        seen.append(arguments)
        return resolved(*arguments)

    monkeypatch.setattr(_backend, "resolve", resolve)
    compiled = torch.compile(
        lambda x, w: x.sum() + len(_backend.choose("eager", x, w)), fullgraph=True, dynamic=True, backend="eager"
    )
    for rows, slots, dim in ((4, 10, 8), (5, 12, 8), (5, 12, 16)):
        compiled(torch.zeros(rows, dim), torch.zeros(slots, dim))
    assert seen == [("eager", CPU, torch.float32, dim, True) for dim in (8, 16)]


def test_alignment_under_a_transform_is_taken_for_granted():
    seen = []
    torch.func.vmap(lambda x: seen.append(_backend._aligned(x)) or x)(torch.zeros(3, 4, 5))
    assert seen == [True]


def test_the_operator_of_each_backend(monkeypatch):
    names = {
        "negative_logsumexp": "plain",
        "negative_logsumexp_cuda": "hand-written",
        "center_gradient": "plain",
        "center_gradient_cuda": "hand-written",
    }
    monkeypatch.setattr(torch.ops, "attfc", SimpleNamespace(**names))
    for make in (_ops.negative_logsumexp_operator, _ops.center_gradient_operator):
        assert [make(name) for name in ("cpu", "triton", "cuda")] == ["plain", "plain", "hand-written"]


def test_a_fallback_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(_backend, "why_not", lambda name: "no compiler" if name == "cpu" else None)
    _backend._tell_fallback.cache_clear()
    try:
        for _ in range(2):
            assert _backend.resolve("auto", CPU, torch.float32, 512) == "eager"
    finally:
        _backend._tell_fallback.cache_clear()
    told = "attfc_cuda: backend cpu is not available (no compiler); using the slower eager\n"
    assert capsys.readouterr().err == told


def test_both_reasons_are_kept_when_nothing_can_be_loaded(monkeypatch):
    def fail(text):
        def load(*_):
            raise ImportError(text)

        return load

    monkeypatch.setattr(_backend, "_prebuilt", fail("no binary"))
    monkeypatch.setattr(_backend, "_build_cpu", fail("no compiler"))
    monkeypatch.setattr(_backend, "_build_cuda", fail("no nvcc"))
    monkeypatch.setattr(_backend, "_extension", _backend._extension.__wrapped__)
    monkeypatch.setattr(_backend, "_cuda_extension", _backend._cuda_extension.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = _backend.why_not("cpu")
    assert "import of the installed extension: ImportError: no binary" in reason
    assert "build at first use: ImportError: no compiler" in reason
    assert "build at first use: ImportError: no nvcc" in _backend.why_not("cuda")
    assert _backend.build_config() == {}
    assert "no nvcc" in _backend.cuda_build_config()["not built"]


def test_info_names_every_backend_and_the_choice():
    report = _backend.info()
    assert all(name in report for name in _backend.BACKENDS)
    assert "on cpu, auto uses: cpu, head step fused" in report
    assert "cuda extension: " in report


def test_info_says_why_the_cuda_extension_is_not_built(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("what is said where there is no GPU")
    real = _backend._prebuilt

    def only_cpu(name):
        if name == "_C_cuda":
            raise ImportError("not there")
        return real(name)

    monkeypatch.setattr(_backend, "_prebuilt", only_cpu)
    monkeypatch.delenv("ATTFC_FORCE_CUDA", raising=False)
    said = "cuda extension: not built = no GPU is visible; ATTFC_FORCE_CUDA=1 builds it all the same"
    assert said in _backend.info()


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        (RTX_4090, "one pass: wgmma and TMA need compute capability 9.0"),
        (H100, "two passes where grad_tolerance is above 0"),
    ],
    ids=["RTX 4090", "H100"],
)
def test_info_lists_the_choice_on_a_gpu(limits, passes, gpu, monkeypatch):
    gpu(limits=limits)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert _backend._device_lines(CUDA) == [
        "on cuda:0 (a card), auto uses:",
        f"  D 512, bfloat16: cuda, head step fused  ({passes})",
        f"  D 512, float16: cuda, head step fused  ({passes})",
        "  D 512, float32: triton, head step fused  (cuda: it takes bfloat16 and float16, not float32)",
        "  D 320, bfloat16: triton, head step fused  (cuda: it is compiled for D = 128, 256 and 512)",
    ]


def test_importing_loads_nothing():
    """The package imports on any machine: no build, no extension, no Triton, before the first call."""
    code = (
        "import sys, attfc_cuda; "
        "print([m for m in sys.modules if m.startswith(('attfc_cuda._C', 'attfc_cuda.ops.triton.'))])"
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


REGISTERED_BY_TRITON = """
import torch
torch.cuda.is_available = lambda: True
from attfc_cuda.ops import backend, head_step
assert backend.why_not("triton") is None, backend.why_not("triton")
has = torch._C._dispatch_has_kernel_for_dispatch_key
for name in ("head_rows", "enqueue_fifo", "enqueue_refresh", "adasin_row_values", "adasin_loss", "row_gradients",
             "step_statistics"):
    plain, triton = (str(head_step.operator(name, each).default._schema) for each in ("cuda", "triton"))
    print(name, has(f"attfc::{name}", "CUDA"), has(f"attfc::{name}_triton", "CUDA"), has(f"attfc::{name}", "CPU"),
          triton.replace("_triton", "") == plain)
"""


def test_the_head_step_by_triton_leaves_the_names_of_the_cuda_extension_free():
    """Either may be loaded first: each has operators of its own, with the same schemas."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if not _backend.available("cpu"):
        pytest.skip(f"the operators come with the extension: {_backend.why_not('cpu')}")
    done = subprocess.run([sys.executable, "-c", REGISTERED_BY_TRITON], capture_output=True, text=True)
    lines = [line.split()[1:] for line in done.stdout.splitlines()]
    assert lines == [["False", "True", "True", "True"]] * 7, done.stdout + done.stderr

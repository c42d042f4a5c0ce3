"""How the CUDA extension is planned: which toolkit, which architectures, or why not. Toolkits are stand-ins."""

import subprocess
import sys
from pathlib import Path

import pytest

from attfc_cuda.ops import build as _build

ROOT = Path(_build.__file__).resolve().parents[2]
TOO_OLD = "the kernels need compute capability 8.0 or later"
ALL = "compute_75 compute_80 compute_86 compute_89 compute_90 compute_100 compute_120"


def make_toolkit(home: Path, version: str = "13.0", known: str = ALL) -> Path:
    """A folder with headers and an nvcc that answers what the plan asks."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f"""#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  --list-gpu-arch) printf '%s\\n' {known} ;;
  --dryrun) echo '#$ _HERE_={home}/bin' >&2; echo '#$ TOP={home}/bin/..' >&2 ;;
esac
"""
    )
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    return home


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No variable set, and no toolkit but those that a test makes and names."""
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", _build.FORCE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    home = make_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    return home


def test_without_a_gpu_nothing_is_built_unless_asked(monkeypatch, toolkit):
    assert _build.plan_cuda_build("13.0", []) == "no GPU is visible; ATTFC_FORCE_CUDA=1 builds it all the same"
    monkeypatch.setenv(_build.FORCE, "1")
    plan = _build.plan_cuda_build("13.0", [])
    assert plan == _build.CudaBuild(_build.Toolkit(toolkit, "13.0"), _build.ARCHITECTURES)


def test_an_older_toolkit_leaves_out_what_it_does_not_know(monkeypatch, tmp_path):
    home = make_toolkit(tmp_path / "cuda", known="compute_75 compute_80 compute_86 compute_90")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv(_build.FORCE, "1")
    assert _build.plan_cuda_build("13.0", []).architectures == ("8.0", "8.6", "9.0")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(9, 0), (9, 0)], ("9.0",)),
        ([(9, 0), (8, 6)], ("8.6", "9.0")),
        ([(7, 5), (9, 0)], ("9.0",)),  # the old card goes to Triton
        ([(8, 7)], ("8.6",)),
        ([(12, 1)], ("12.0",)),
        ([(13, 0)], ("12.0+PTX",)),  # a generation that the toolkit does not know
    ],
)
def test_a_visible_gpu_is_what_it_is_built_for(toolkit, capabilities, expected):
    plan = _build.plan_cuda_build("13.0", capabilities)
    assert plan.architectures == expected
    usable = [capability for capability in capabilities if capability >= (8, 0)]
    assert all(_build.runs_on(plan.architectures, capability) for capability in usable)


@pytest.mark.parametrize("text", ["8.0;9.0+PTX", "8.0 9.0+PTX", "7.5;8.0;9.0+PTX"])
def test_the_list_of_architectures_decides(monkeypatch, toolkit, text):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    plan = _build.plan_cuda_build("13.0", [(8, 6)])
    assert plan.architectures == ("8.0", "9.0+PTX")
    assert plan.nvcc_flags()[2:] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",  # wgmma and TMA; PTX of it would run nowhere else
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "-DATTFC_CUDA_ARCHITECTURES=8.0,9.0+PTX" in plan.cxx_flags()
    assert "-DATTFC_CUDA_HAS_SM90A=1" in plan.cxx_flags()


def test_code_for_hopper_is_promised_where_it_is_built(toolkit):
    assert "-DATTFC_CUDA_HAS_SM90A=0" in _build.plan_cuda_build("13.0", [(8, 6)]).cxx_flags()
    assert "-DATTFC_CUDA_HAS_SM90A=1" in _build.plan_cuda_build("13.0", [(9, 0)]).cxx_flags()


def test_a_list_that_cannot_be_read_is_an_error(monkeypatch, toolkit):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0 or 9.0.PTX, got 'Hopper'"):
        _build.plan_cuda_build("13.0", [(9, 0)])
    monkeypatch.setenv(_build.FORCE, "yes")
    with pytest.raises(ValueError, match="ATTFC_FORCE_CUDA must be 0, 1 or unset, got 'yes'"):
        _build.plan_cuda_build("13.0", [(9, 0)])


@pytest.mark.parametrize(
    ("torch_cuda", "variables", "capabilities", "reason"),
    [
        (None, {}, [(9, 0)], "this build of torch has no CUDA"),
        ("12.8", {}, [(9, 0)], "torch has CUDA 12.8, and the toolkit found is 13.0 in "),
        (
            "13.0",
            {"TORCH_CUDA_ARCH_LIST": "7.5"},
            [(9, 0)],
            f"{TOO_OLD}, got 7.5",
        ),
        ("13.0", {}, [(7, 5)], f"{TOO_OLD}, got 7.5"),
        ("13.0", {"CUDA_HOME": "/nowhere"}, [(9, 0)], "no CUDA toolkit in CUDA_HOME = /nowhere"),
    ],
)
def test_reasons(monkeypatch, toolkit, torch_cuda, variables, capabilities, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _build.plan_cuda_build(torch_cuda, capabilities).startswith(reason)
    monkeypatch.setenv(_build.FORCE, "1")  # now it must not be left out
    with pytest.raises(RuntimeError) as raised:
        _build.plan_cuda_build(torch_cuda, capabilities)
    assert f"the CUDA extension must be buildable where ATTFC_FORCE_CUDA is 1, got: {reason}" in str(raised.value)
    monkeypatch.setenv(_build.FORCE, "0")
    assert _build.plan_cuda_build(torch_cuda, capabilities) == "ATTFC_FORCE_CUDA is 0"


def test_a_wrapper_on_path_leads_to_the_toolkit_behind_it(monkeypatch, tmp_path):
    home = make_toolkit(tmp_path / "real")
    wrapper = tmp_path / "somewhere" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=":")
    assert _build.find_toolkit("13.0") == _build.Toolkit(home, "13.0")


def test_code_runs_on_its_own_generation_and_ptx_on_later_ones():
    assert _build.runs_on(["8.0"], (8, 9)) and not _build.runs_on(["8.9"], (8, 6))
    assert not _build.runs_on(["8.0"], (9, 0)) and _build.runs_on(["8.0+PTX"], (9, 0))


@pytest.mark.parametrize(
    ("name", "runs", "does_not"),
    [
        ("9.0a", [(9, 0)], [(8, 9), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0), (12, 0)]),
        ("10.0", [(10, 0), (10, 3)], [(12, 0)]),
        ("10.0a", [(10, 0)], [(10, 3)]),
        ("12.0a+PTX", [(12, 0)], [(12, 1), (13, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("10.3f+PTX", [(10, 3)], [(10, 0), (12, 0)]),
    ],
)
def test_code_with_a_suffix_runs_on_its_own_device_or_family_only(name, runs, does_not):
    assert [_build.runs_on([name], each) for each in runs] == [True] * len(runs)
    assert [_build.runs_on([name], each) for each in does_not] == [False] * len(does_not)


def test_the_two_extensions_share_no_source():
    csrc = ROOT / "csrc"
    cpu, cuda = set(_build.cpu_sources(csrc)), set(_build.cuda_sources(csrc))
    assert not cpu & cuda
    assert cpu | cuda == {path for path in csrc.rglob("*") if path.suffix in (".cpp", ".cu")}


def test_torch_is_shown_the_toolkit_and_then_its_own_again():
    from torch.utils import cpp_extension

    before = cpp_extension.CUDA_HOME
    with _build.torch_uses(_build.Toolkit(Path("/a/toolkit"), "13.0"), cpp_extension):
        assert cpp_extension.CUDA_HOME == "/a/toolkit"
    assert before == cpp_extension.CUDA_HOME


def test_setup_py_says_in_one_line_what_becomes_of_the_cuda_extension():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1].count(".") == 2
    lines = [line for line in done.stderr.splitlines() if "attfc_cuda: the CUDA extension is" in line]
    assert len(lines) == 1

"""Both CPU kernels under every instruction set that this processor has."""

import cpu_cases
import pytest

from attfc_cuda.ops import backend as _backend

pytestmark = cpu_cases.needs_extension

GRID = """if True:
    import cpu_cases
    from attfc_cuda.ops import backend as _backend
    from attfc_cuda import testing
    for dtype in cpu_cases.DTYPES:
        for shape in ("narrow", "tail", "odd"):
            for modulation in ("none", "quadratic"):
                options = {"kind": "trained", "modulation": modulation}
                cpu_cases.check_sweep(testing.make_case(testing.SHAPES[shape], dtype, **options))
                for raw in (False, True):
                    case = cpu_cases.make_center_case(testing.SHAPES[shape], dtype, raw=raw, **options)
                    cpu_cases.check_center_gradient(case)
    print(_backend.build_config()["cpu_capability"])
"""


@pytest.mark.parametrize("capability", cpu_cases.CAPABILITIES)
def test_every_instruction_set_agrees_with_float64(capability):
    active = _backend.build_config()["cpu_capability"]
    if cpu_cases.CAPABILITIES.index(capability) < cpu_cases.CAPABILITIES.index(active):
        pytest.skip(f"this processor has {active}, not {capability}")
    done = cpu_cases.run_with_capability(capability, GRID)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == capability


def test_an_unknown_capability_is_named():
    done = cpu_cases.run_with_capability("avx", "from attfc_cuda.ops import backend; backend.build_config()")
    assert "ATTFC_CPU_CAPABILITY must be generic, avx2, avx512, avx512_bf16 or amx, got avx" in done.stderr

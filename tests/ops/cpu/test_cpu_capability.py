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


def check_with_capability(capability, script):
    """Run a script that ends by printing its instruction set; skip where this processor has none such."""
    active = _backend.build_config()["cpu_capability"]
    if cpu_cases.CAPABILITIES.index(capability) < cpu_cases.CAPABILITIES.index(active):
        pytest.skip(f"this processor has {active}, not {capability}")
    done = cpu_cases.run_with_capability(capability, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == capability


@pytest.mark.parametrize("capability", cpu_cases.CAPABILITIES)
def test_every_instruction_set_agrees_with_float64(capability):
    check_with_capability(capability, GRID)


STORAGE = """if True:
    import dataclasses
    import torch
    import cpu_cases
    from attfc_cuda import negative_logsumexp, testing
    from attfc_cuda.ops import backend as _backend
    def wide(case):
        return dataclasses.replace(case, embeddings=case.embeddings.float(), centers=case.centers.float())
    def same(narrow, wide):
        return torch.equal(narrow.nan_to_num(), wide.to(narrow.dtype).nan_to_num())
    for dtype in (torch.bfloat16, torch.float16):
        for shape in ("narrow", "tail", "odd"):
            for modulation in ("none", "quadratic"):
                options = {"kind": "trained", "modulation": modulation}
                case = testing.make_case(testing.SHAPES[shape], dtype, **options)
                both = [
                    testing.run(negative_logsumexp, each, backend="cpu", grad_tolerance=2.0**-12)
                    for each in (case, wide(case))
                ]
                for name, value in both[0].items():
                    assert same(value, both[1][name]), (dtype, shape, modulation, name)
                for raw in (False, True):
                    given = cpu_cases.make_center_case(testing.SHAPES[shape], dtype, raw=raw, **options)
                    lse = cpu_cases.swept_lse(given)
                    gradient = cpu_cases.center_gradient(given, 2.0**-12, lse)
                    widened = dataclasses.replace(given, case=wide(given.case))
                    expected = cpu_cases.center_gradient(widened, 2.0**-12, lse)
                    assert expected.dtype == torch.float32 and same(gradient, expected), (dtype, shape, raw)
    print(_backend.build_config()["cpu_capability"])
"""


@pytest.mark.parametrize("capability", ["avx512", "avx2", "generic"])
def test_without_16_bit_products_16_bits_are_storage_alone(capability):
    """Every result is that of float32 over the same numbers, rounded where it is kept in 16 bits: bit for bit."""
    check_with_capability(capability, STORAGE)


def test_an_unknown_capability_is_named():
    done = cpu_cases.run_with_capability("avx", "from attfc_cuda.ops import backend; backend.build_config()")
    assert "ATTFC_CPU_CAPABILITY must be generic, avx2, avx512, avx512_bf16 or amx, got avx" in done.stderr

"""The Triton kernels compiled for every architecture, without a GPU: no spills, within shared memory, on tensor cores.

The numbers are the compiler's own (attfc_cuda/ops/resources/triton_compile.py). Triton caches what it compiles: a
second run is quick. `make test` compiles for the first architecture of NEWEST_FIRST what training runs; `make proof`
compiles the rest.
"""

from __future__ import annotations

import re

import pytest
import torch
from proofs import rest_in_proof

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from attfc_cuda.ops.resources import triton_report as report
from attfc_cuda.ops.resources.triton_compile import (
    ARCHITECTURES,
    Resources,
    _mma_in_loop,
    _occupancy,
    center_gradient_resources,
    merge_resources,
    sweep_resources,
)
from attfc_cuda.ops.resources.triton_head_step import KERNELS as HEAD_STEP
from attfc_cuda.ops.resources.triton_head_step import head_step_resources
from attfc_cuda.ops.triton.configs import MAX_DIM, Config, choose, choose_center_gradient, padded_dim

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
NEWEST_FIRST = (90, *(each for each in ARCHITECTURES if each != 90))
proof = pytest.mark.proof


def check(resources: Resources, tensor_cores: bool) -> None:
    assert resources.spill_bytes == 0
    assert resources.registers <= 255
    assert resources.shared_bytes <= resources.shared_limit
    assert resources.occupancy > 0
    assert (resources.mma_in_loop > 0) == tensor_cores


# In training: modulated, with gradient, skipping; moments only where a coefficient is learnt. float32 does not skip.
@pytest.mark.parametrize("dtype", rest_in_proof([BFLOAT16, FLOAT16, FLOAT32]), ids=str)
@pytest.mark.parametrize("architecture", rest_in_proof(NEWEST_FIRST))
def test_training_at_512(architecture, dtype):
    check(sweep_resources(architecture, dtype, 512, may_omit=dtype != FLOAT32), dtype != FLOAT32)


@proof
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BFLOAT16, {"need_moments": True}),
        (FLOAT16, {"need_moments": True}),
        (FLOAT32, {"need_moments": True, "may_omit": False}),
        (BFLOAT16, {"may_omit": False}),
        (BFLOAT16, {"modulated": False}),
        (BFLOAT16, {"need_grad": False}),
        (BFLOAT16, {"scaled": True}),
        (FLOAT16, {"scaled": True, "need_moments": True}),
        (FLOAT32, {"precision": "tf32"}),
        (FLOAT32, {"precision": "tf32x3"}),
    ],
    ids=str,
)
def test_variants_at_512(architecture, dtype, options):
    check(sweep_resources(architecture, dtype, 512, **options), dtype != FLOAT32 or "precision" in options)


@proof
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dim", [64, 256, 1000])
def test_other_dims(architecture, dim):
    """1000 is no multiple of 16: columns are masked and copied by narrower loads."""
    check(sweep_resources(architecture, BFLOAT16, dim), True)


@proof
@pytest.mark.parametrize("architecture", [86, 120])
def test_the_widest_rows_fit_the_smaller_shared_memory(architecture):
    check(sweep_resources(architecture, FLOAT16, MAX_DIM), True)


def test_hopper_multiplies_with_warp_groups_without_repeating_the_first_product():
    """64 x 64 x 512 on two warp groups: 32 instructions of 64 x 32 x 16 for the first product, 4 of 64 x 256 x 16 for
    the second. Were the two taken for a chain, each group would compute all of the first: 64."""
    assert sweep_resources(90, BFLOAT16, 512).mma_in_loop == 32 + 4


# In training: raw centres (with center_scale), modulated.
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    rest_in_proof(
        [(architecture, BFLOAT16) for architecture in NEWEST_FIRST]
        + [(architecture, dtype) for architecture in (80, 90) for dtype in (FLOAT16, FLOAT32)]
    ),
)
def test_center_gradient_at_512(architecture, dtype):
    check(center_gradient_resources(architecture, dtype, 512), dtype != FLOAT32)


@proof
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BFLOAT16, {"scaled": False}),
        (FLOAT16, {"scaled": False, "modulated": False}),
        (BFLOAT16, {"modulated": False}),
        (FLOAT32, {"precision": "tf32"}),
        (FLOAT32, {"precision": "tf32x3"}),
    ],
    ids=str,
)
def test_variants_of_the_center_gradient_at_512(architecture, dtype, options):
    check(center_gradient_resources(architecture, dtype, 512, **options), dtype != FLOAT32 or "precision" in options)


@proof
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("dtype", "dim"), [(FLOAT32, 128), (BFLOAT16, 128), (BFLOAT16, 1000)], ids=str)
def test_center_gradient_at_other_dims(architecture, dtype, dim):
    check(center_gradient_resources(architecture, dtype, dim), dtype != FLOAT32)


def test_center_gradient_on_hopper_repeats_no_product():
    """As in the sweep; were the projection's four instructions in the loop, they would be counted."""
    assert center_gradient_resources(90, BFLOAT16, 512).mma_in_loop == 32 + 4


def test_no_kernel_sums_16_bit_values(monkeypatch):
    """Compiled, `tl.sum` of bfloat16 adds in bfloat16 and loses what is below 2^-8 of the sum: every reduction must be
    over float32 or integers, and every product must accumulate in float32."""
    kept, compile_kernel = [], triton.compile
    monkeypatch.setattr(triton, "compile", lambda *a, **k: kept.append(compile_kernel(*a, **k)) or kept[-1])
    sweep_resources(80, BFLOAT16, 512, need_moments=True)
    sweep_resources(80, FLOAT16, 512, need_moments=True, scaled=True)
    center_gradient_resources(80, BFLOAT16, 512)
    center_gradient_resources(90, BFLOAT16, 512)
    merge_resources(80, 512)
    for compiled in kept:
        text = compiled.asm["ttir"]
        operands = " ".join(re.findall(r"\}\) : \((.*?)\) -> ", text))
        reduced = re.findall(r"x([a-z]\w*)>", operands)
        assert reduced and set(reduced) <= {"f32", "i32", "i64"}, reduced
        products = re.findall(r"tt\.dot .* -> tensor<[\dx]+x([a-z]\w*)>", text)
        assert set(products) <= {"f32"}, products
    assert sum("tt.dot" in compiled.asm["ttir"] for compiled in kept) == 4


def test_offsets_have_64_bits(monkeypatch):
    """A matrix of 2^31 elements cannot be had here. What grows with its size is row or slot numbers times a stride: no
    such product of tensors may have 32 bits."""
    kept, compile_kernel = [], triton.compile
    monkeypatch.setattr(triton, "compile", lambda *a, **k: kept.append(compile_kernel(*a, **k)) or kept[-1])
    sweep_resources(80, BFLOAT16, 512)
    center_gradient_resources(80, BFLOAT16, 512)
    for compiled in kept:
        products = re.findall(r"arith\.muli .*: (tensor<[^>]*>)", compiled.asm["ttir"])
        assert len(products) >= 3
        assert all(kind.endswith("xi64>") for kind in products), products


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_merge(architecture):
    check(merge_resources(architecture, 512), False)


@pytest.mark.parametrize("name", HEAD_STEP)
@pytest.mark.parametrize("architecture", rest_in_proof(NEWEST_FIRST))
def test_head_step(architecture, name):
    check(head_step_resources(architecture, name), False)


@proof
@pytest.mark.parametrize("name", ["head_rows", "row_gradients", "scatter"])
@pytest.mark.parametrize(("dtype", "dim"), [(FLOAT32, 512), (FLOAT16, 1000), (FLOAT32, MAX_DIM)], ids=str)
def test_head_step_in_other_shapes(dtype, dim, name):
    check(head_step_resources(80, name, dtype, dim), False)


def test_the_head_step_sums_float32_and_adds_no_float_by_an_atomic(monkeypatch):
    """Two runs give the same bits, and no sum is in 16 bits (test_no_kernel_sums_16_bit_values)."""
    kept, compile_kernel = {}, triton.compile
    monkeypatch.setattr(triton, "compile", lambda *a, **k: kept.setdefault(a[0].name, compile_kernel(*a, **k)))
    for name in HEAD_STEP:
        head_step_resources(90, name)
    atomics = 0
    for name, compiled in kept.items():
        text = compiled.asm["ttir"]
        reduced = re.findall(r"x([a-z]\w*)>", " ".join(re.findall(r"\}\) : \((.*?)\) -> ", text)))
        assert set(reduced) <= {"f32", "i32", "i64"}, (name, reduced)
        assert reduced or name.startswith("scatter"), name
        kinds = re.findall(r"tt\.atomic_rmw (\w+)", text)
        assert set(kinds) <= {"add"}, (name, kinds)
        atomics += len(kinds)
    assert len(kept) == len(HEAD_STEP) and atomics >= 4


@proof
def test_a_tile_that_is_too_large_is_seen_to_spill():
    """The reading of spills bites: twice the rows on sm_80 leaves no registers for anything but the accumulator."""
    assert sweep_resources(80, BFLOAT16, 512, config=Config(64, 64, 512, 512)).spill_bytes > 0


def test_loop_reader():
    sass = """
.L_x_0:
        /*0000*/    HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
.L_x_1:
        /*0010*/    HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0020*/    HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
        /*0030*/    @P0 BRA `(.L_x_1) ;
        /*0040*/    HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
.L_x_2:
        /*0050*/    BRA `(.L_x_2);
"""
    assert _mma_in_loop(sass) == 2


@pytest.mark.parametrize(
    ("registers", "shared", "expected"),
    [(128, 0, 16 / 64), (255, 0, 8 / 64), (32, 0, 1.0), (32, 100_000, 8 / 64), (64, 70_000, 16 / 64)],
)
def test_occupancy_of_eight_warps_on_sm_80(registers, shared, expected):
    assert _occupancy(80, registers, shared, 8) == expected


def test_padded_dim_and_choice():
    assert [padded_dim(dim) for dim in (1, 16, 17, 384, 512, 513)] == [16, 16, 32, 512, 512, 1024]
    for architecture in ARCHITECTURES:
        for dim in (1, 100, 128, 200, 512, 640, MAX_DIM):
            config = choose(architecture, BFLOAT16, dim)
            assert config.block_d == config.block_k == padded_dim(dim)
            assert choose(architecture, FLOAT32, dim).block_k == min(32, padded_dim(dim))
            assert not choose_center_gradient(architecture, FLOAT32, dim).project_by_product
            swapped = choose_center_gradient(architecture, BFLOAT16, dim)
            assert (swapped.block_s, swapped.block_b) == (config.block_b, config.block_s)
            assert swapped.project_by_product == (architecture == 90 and padded_dim(dim) == 512)


KERNELS = ("triton sweep", "triton center gradient", "triton merge", *(f"triton {name}" for name in HEAD_STEP))


@proof
def test_report(capsys):
    table = report.rows(architectures=(80, 90), dtypes=(BFLOAT16,))
    assert [(row["kernel"], row["architecture"]) for row in table] == [
        (kernel, architecture) for architecture in ("sm_80", "sm_90") for kernel in KERNELS
    ]
    report.print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(table)
    assert lines[0].split()[:4] == ["kernel", "dtype", "arch", "D"]
    assert "64x64/8/2" in lines[1 + len(KERNELS)] and "%" in lines[3]  # the sweep on sm_90

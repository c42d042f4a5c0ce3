"""The table of a sweep's numbers per row: what is in it, in which order, and where its gradient goes."""

import math
import re
from pathlib import Path

import pytest
import torch

from attfc_cuda import negative_logsumexp, testing
from attfc_cuda.ops.row_values import RowValues, is_modulated

X = torch.zeros(3, 7, dtype=torch.bfloat16)


def test_the_table_says_what_there_is():
    target, threshold, lin = torch.tensor([5.0, 6.0, 7.0]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    nothing, alone = RowValues().stack(X), RowValues(target).stack(X)
    assert nothing.shape == (0, 3) and torch.equal(alone, target[None])
    assert not is_modulated(nothing) and not is_modulated(alone)
    table = RowValues(threshold=threshold, lin=lin).stack(X)
    expected = [[-math.inf] * 3, threshold.tolist(), [0.0] * 3, lin.tolist(), [0.0] * 3]
    assert is_modulated(table) and torch.equal(table, torch.tensor(expected))
    assert RowValues().stack(X.double()).dtype == torch.float64


def test_stack_and_unstack_are_inverse():
    rows = RowValues(*torch.arange(15.0).reshape(5, 3))
    assert all(map(torch.equal, RowValues.unstack(rows.stack(X)), rows))
    assert RowValues.unstack(RowValues().stack(X)) == RowValues()
    only = RowValues.unstack(RowValues(rows.target_logit).stack(X))
    assert torch.equal(only.target_logit, rows.target_logit) and only[1:] == (None,) * 4


def test_strided_numbers_make_a_contiguous_table():
    target = torch.arange(6.0)[::2]
    assert RowValues(target).stack(X).is_contiguous()


def test_the_gradient_goes_to_the_coefficients_alone():
    rows = RowValues(*(torch.ones(3, requires_grad=True) for _ in RowValues._fields))
    rows.stack(X).pow(2).sum().backward()
    assert [value.grad is not None for value in rows] == [False, False, True, True, True]
    assert torch.equal(rows.lin.grad, torch.full((3,), 2.0))
    assert not RowValues(torch.ones(3, requires_grad=True)).stack(X).requires_grad


def test_kernels_read_the_rows_in_this_order():
    header = (Path(__file__).resolve().parents[2] / "csrc" / "sweep_inputs.h").read_text()
    names = re.search(r"enum RowValue \{ (.*), kNumRowValues \};", header)[1].split(", ")
    spelled = [re.sub("(?<!^)([A-Z])", r"_\1", name.removeprefix("k")).lower() for name in names]
    # `const` is a word of C++.
    assert [name.replace("constant", "const") for name in spelled] == list(RowValues._fields)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_target_logit_left_out_is_one_of_minus_infinity(backend):
    case = testing.make_case((9, 131, 40), modulation="quadratic", kind="trained")
    case.target_logit = None
    expected = testing.run(negative_logsumexp, case, backend=backend, grad_tolerance=2.0**-6)
    case.target_logit = torch.full((9,), -math.inf)
    found = testing.run(negative_logsumexp, case, backend=backend, grad_tolerance=2.0**-6)
    assert all(torch.equal(found[key].nan_to_num(), expected[key].nan_to_num()) for key in expected)

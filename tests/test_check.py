"""The check of labels, where the host may look and where it may not."""

from types import SimpleNamespace

import pytest
import torch

from attfc_cuda._check import require_labels, require_rows

LABELS = torch.tensor([3, -1, 12, 10])


def test_the_first_bad_row_is_named():
    require_labels("f", LABELS, 13)
    with pytest.raises(ValueError, match="f: labels must be below num_classes = 10, got 12 in row 2; give the head"):
        require_labels("f", LABELS, 10)


def test_nothing_is_checked_while_a_graph_is_captured(monkeypatch):
    on_a_gpu = SimpleNamespace(is_cuda=True)  # not a tensor: whoever looks at it fails
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    require_labels("f", on_a_gpu, 10)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(TypeError):
        require_labels("f", on_a_gpu, 10)


@pytest.mark.parametrize(("debug", "waits"), [("", False), ("1", True)])
def test_the_debug_variable_makes_the_host_wait(monkeypatch, debug, waits):
    asked = []
    monkeypatch.setattr("attfc_cuda._check.require_rows", lambda *arguments, wait: asked.append(wait))
    monkeypatch.setenv("ATTFC_DEBUG", debug)
    require_labels("f", LABELS, 10)
    assert asked == [waits]


def test_compiled_code_asserts_without_the_row():
    def check(labels):
        require_labels("f", labels, 10)
        return labels + 1

    compiled = torch.compile(check, fullgraph=True, backend="eager")
    assert torch.equal(compiled(LABELS[:2]), LABELS[:2] + 1)
    with pytest.raises(RuntimeError, match="below num_classes = 10"):
        compiled(LABELS)


def test_a_device_other_than_the_cpu_is_looked_at_only_with_wait(monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda ok, text: asserted.append(text))
    monkeypatch.setattr("attfc_cuda._check._host_may_read", lambda ok, wait: wait)
    bad = torch.tensor([True, False])
    require_rows(bad, "f", "x", "hold", lambda row: f"nothing in row {row}")
    assert asserted == ["f: x must hold, got a row that does not (found on the device, where the row is not known)"]
    with pytest.raises(ValueError, match="nothing in row 1"):
        require_rows(bad, "f", "x", "hold", lambda row: f"nothing in row {row}", wait=True)

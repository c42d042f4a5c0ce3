"""The class container against a model of plain Python lists and dicts, its errors, and that no value is read back."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch._subclasses.fake_tensor import FakeTensorMode

from attfc_cuda.heads.container import POLICIES, DynamicClassContainer
from attfc_cuda.ops import backend as backends

CLASSES = 9
NAN, INF = math.nan, math.inf


class Model:
    """What the container does, said in plain Python: a centre is one number, slots are a list or an LRU dict."""

    def __init__(self, capacity, policy):
        self.capacity, self.policy, self.clock = capacity, policy, 0
        self.slots = [None] * capacity if policy == "fifo" else OrderedDict()

    def enqueue(self, rows):
        for label, center in rows:
            if label < 0 or not math.isfinite(center):
                continue
            if self.policy == "fifo":
                self.slots[self.clock % self.capacity] = (label, center)
                self.clock += 1
            else:
                self.slots.pop(label, None)
                self.slots[label] = center
                if len(self.slots) > self.capacity:
                    self.slots.popitem(last=False)


def poison(container):
    """NaN in every slot that nobody may read."""
    container.centers[container.labels < 0] = NAN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity, classes", [(7, 9), (40, 9), (300, 5000)])
def test_kernels_and_operators_leave_the_same_bits(capacity, classes, policy, dtype, monkeypatch):
    torch.manual_seed(0)
    containers = [DynamicClassContainer(capacity, 5, classes, policy, dtype) for _ in range(2)]
    for each in containers:
        each.clock.fill_(1 << 41)  # a run of years: the histogram of the stamps is as skewed as it can be
    for step in range(60):
        rows = int(torch.randint(0, min(capacity, 33) + 1, ()))
        # Now and then a run of few classes, so that some slots stay unrefreshed for long.
        labels = torch.randint(-2, classes if step % 3 else 4, (rows,))
        centers = torch.randn(rows, 5)
        centers[torch.rand(rows) < 0.05] = NAN
        centers[torch.rand(rows) < 0.05] *= 1e6  # more than float16 holds
        for kernels, container in zip((True, False), containers, strict=True):
            with monkeypatch.context() as patched:
                patched.setattr(backends, "enqueues", lambda device_type, kernels=kernels: kernels)
                container.enqueue(centers, labels)
        for name, buffer in containers[0].named_buffers():
            other = dict(containers[1].named_buffers())[name]
            if name == "slot_of_class":  # the last entry and those of evicted classes are never believed
                held = containers[0].labels[containers[0].labels >= 0]
                buffer, other = buffer[held], other[held]
            assert torch.equal(buffer, other), (step, name)
    assert (containers[0].labels >= 0).sum() == min(capacity, classes if policy == "refresh" else capacity)


class ContainerMachine(RuleBasedStateMachine):
    container = None

    @initialize(
        capacity=st.integers(1, 7),
        policy=st.sampled_from(POLICIES),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        counted=st.booleans(),
    )
    def build(self, capacity, policy, dtype, counted):
        classes = CLASSES if counted or policy == "refresh" else None
        self.make = lambda: DynamicClassContainer(capacity, 2, classes, policy, dtype)
        self.container, self.model = self.make(), Model(capacity, policy)
        self.value = 0
        poison(self.container)

    @rule(data=st.data())
    def enqueue(self, data):
        rows = []
        for _ in range(data.draw(st.integers(0, self.container.capacity), label="rows")):
            label = data.draw(st.sampled_from([-7, -1, *range(CLASSES)]), label="label")
            # Small integers are exact in all the dtypes, so that the model need not round.
            self.value = (self.value + 1) % 200
            center = data.draw(st.sampled_from([self.value] * 4 + [NAN, INF, -INF]), label="center")
            rows.append((label, float(center)))
        # The second coordinate is finite throughout: one bad number must keep the whole row out.
        centers = torch.tensor([[center, 1.0] for _, center in rows]).reshape(-1, 2)
        self.container.enqueue(centers, torch.tensor([label for label, _ in rows], dtype=torch.int64))
        self.model.enqueue(rows)

    @rule()
    def reset(self):
        self.container.reset()
        poison(self.container)
        self.model = Model(self.model.capacity, self.model.policy)

    @rule()
    def save_and_load(self):
        restored = self.make()
        restored.load_state_dict(copy.deepcopy(self.container.state_dict()))
        for name, buffer in self.container.named_buffers():
            found = restored.get_buffer(name)
            if name == "slot_of_class":  # only the entries of classes that are there mean anything
                held = self.container.labels[self.container.labels >= 0]
                buffer, found = buffer[held], found[held]
            assert torch.equal(buffer.nan_to_num(), found.nan_to_num()), name
        self.container = restored

    @invariant()
    @precondition(lambda self: self.container is not None)
    def agrees_with_the_model(self):
        labels, centers = self.container.labels.tolist(), self.container.centers.tolist()
        found = [None if label < 0 else (label, center[0]) for label, center in zip(labels, centers, strict=True)]
        if self.model.policy == "fifo":
            assert found == self.model.slots
        else:
            held = [entry for entry in found if entry is not None]
            assert len({label for label, _ in held}) == len(held), "a class has two slots"
            assert dict(held) == dict(self.model.slots)
            by_age = sorted(range(len(found)), key=lambda slot: self.container.stamps[slot])
            assert [found[slot][0] for slot in by_age if found[slot]] == list(self.model.slots)
            assert self.container.stamps.unique().numel() == self.container.capacity
            classes = torch.arange(-1, CLASSES + 1)
            stored, there = self.container.lookup(classes)
            assert there.tolist() == [label in self.model.slots for label in classes.tolist()]
            expected = [
                [self.model.slots[label], 1.0] if label in self.model.slots else [0.0, 0.0]
                for label in classes.tolist()
            ]
            assert stored.tolist() == expected
        assert int(self.container.fill) == sum(entry is not None for entry in found)
        assert all(center[1] == 1.0 for center, label in zip(centers, labels, strict=True) if label >= 0)


ContainerMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestContainerMachine = ContainerMachine.TestCase


def rows(labels, start=0.0):
    """Centres [n, 2] that carry their own number in the first coordinate, with their labels."""
    return torch.stack([torch.arange(len(labels)) + start, torch.ones(len(labels))], 1), torch.tensor(labels)


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def held(container):
    """The labels of the slots, in order."""
    return container.labels.tolist()


def test_fifo_keeps_duplicates_and_wraps_inside_a_batch():
    container = DynamicClassContainer(5, 2)
    container.enqueue(*rows([3, 3, 7]))
    container.enqueue(*rows([8, -1, 3, 9], start=10))
    assert held(container) == [9, 3, 7, 8, 3]
    assert container.centers[:, 0].tolist() == [13, 1, 2, 10, 12]
    assert int(container.clock) == 6 and int(container.fill) == 5


def test_refresh_overwrites_its_own_slot_and_evicts_the_least_recently_refreshed():
    container = DynamicClassContainer(4, 2, num_classes=10, policy="refresh")
    container.enqueue(*rows([5, 6, 7, 8]))
    container.enqueue(*rows([5, 6], start=10))  # 7 is now the class that has waited longest, then 8
    container.enqueue(*rows([9], start=20))
    assert held(container) == [5, 6, 9, 8]
    assert container.centers[:, 0].tolist() == [10, 11, 20, 3]


def test_refresh_never_evicts_a_class_of_the_batch():
    # 5 is the oldest, but this batch refreshes it: the new classes must take the slots of 6 and 7.
    container = DynamicClassContainer(3, 2, num_classes=10, policy="refresh")
    container.enqueue(*rows([5, 6, 7]))
    container.enqueue(*rows([1, 2, 5], start=10))
    assert held(container) == [5, 1, 2]
    assert container.centers[:, 0].tolist() == [12, 10, 11]


def test_refresh_finds_a_class_that_was_evicted_and_came_back():
    container = DynamicClassContainer(2, 2, num_classes=4, policy="refresh")
    for label in (0, 1, 2, 0, 2, 0):  # 2 evicts 0; 0 evicts 1; then both are refreshed in place
        container.enqueue(*rows([label]))
    assert sorted(held(container)) == [0, 2]
    container.enqueue(*rows([3, 0], start=10))
    assert sorted(held(container)) == [0, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_as_large_as_the_container_replaces_all_of_it(policy):
    container = DynamicClassContainer(4, 2, 20, policy)
    container.enqueue(*rows([0, 1, 2]))
    container.enqueue(*rows([10, 11, 12, 13], start=10))
    assert sorted(held(container)) == [10, 11, 12, 13]
    assert sorted(container.centers[:, 0].tolist()) == [10, 11, 12, 13]


@pytest.mark.parametrize("policy", POLICIES)
def test_empty_batch_changes_nothing(policy):
    container = DynamicClassContainer(4, 2, 20, policy)
    container.enqueue(*rows([1, 2]))
    before = copy.deepcopy(container.state_dict())
    container.enqueue(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert same_state(before, container.state_dict())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_that_overflows_the_container_dtype_is_not_written(policy):
    container = DynamicClassContainer(4, 2, 20, policy, torch.float16)
    container.enqueue(torch.tensor([[1e6, 0.0], [0.5, 0.5]]), torch.tensor([1, 2]))  # 1e6 is infinite in float16
    assert sorted(held(container)) == [-1, -1, -1, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_unchecked_labels_out_of_range_are_left_out_and_overwrite_nothing(policy):
    container = DynamicClassContainer(4, 2, 5, policy, check_labels=False)
    container.enqueue(*rows([4, 5, 2**40, 1]))
    assert held(container) == [4, 1, -1, -1]


@pytest.mark.parametrize("policy", POLICIES)
def test_centers_are_detached_and_stay_buffers(policy):
    container = DynamicClassContainer(4, 2, 20, policy)
    source = torch.randn(2, 2, requires_grad=True)
    container.enqueue(source * 2, torch.tensor([1, 2]))
    assert not container.centers.requires_grad and not list(container.parameters())
    assert torch.equal(container.centers[:2], source.detach() * 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_state_dict_goes_through_a_file_of_weights_only(policy, tmp_path):
    container = DynamicClassContainer(6, 2, 20, policy)
    for start, labels in enumerate([[1, 2, 3, 4], [5, 6, 2], [7, 8, 1]]):
        container.enqueue(*rows(labels, start=10 * start))
    torch.save(container.state_dict(), tmp_path / "container.pt")
    restored = DynamicClassContainer(6, 2, 20, policy)
    restored.load_state_dict(torch.load(tmp_path / "container.pt", weights_only=True))
    for each in (container, restored):
        each.enqueue(*rows([9, 2, 11, 1], start=40))
    assert same_state(container.state_dict(), restored.state_dict())


def test_a_damaged_checkpoint_is_refused():
    container = DynamicClassContainer(4, 2, 20, "refresh")
    state = container.state_dict()
    state["labels"] = torch.tensor([1, 20, 2, -1])
    with pytest.raises(ValueError, match=r"labels must lie between -1 and num_classes - 1 = 19, got 20 in slot 1"):
        DynamicClassContainer(4, 2, 20, "refresh").load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for centers"):
        DynamicClassContainer(5, 2, 20, "refresh").load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*stamps"):
        DynamicClassContainer(4, 2, 20, "fifo").load_state_dict(state)


@pytest.mark.parametrize("policy", POLICIES)
def test_enqueue_needs_no_value_on_the_host(policy):
    # A fake tensor has no values: anything that reads one, or whose shape depends on one, raises.
    with FakeTensorMode():
        container = DynamicClassContainer(16, 4, 100, policy)
        container.enqueue(torch.randn(5, 4), torch.randint(0, 100, (5,)))
        assert container.fill.shape == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_enqueue_compiles_in_one_piece_and_agrees(policy):
    eager, compiled = (DynamicClassContainer(7, 2, 20, policy) for _ in range(2))
    enqueue = torch.compile(compiled.enqueue, fullgraph=True, backend="aot_eager")
    for start, labels in enumerate([[1, 2, 1, -1], [3, 4, 5, 2], [6, 7, 8, 9], [1, 4, 2, 10]]):
        eager.enqueue(*rows(labels, start=10 * start))
        enqueue(*rows(labels, start=10 * start))
    assert all(torch.equal(a, b) for a, b in zip(eager.buffers(), compiled.buffers(), strict=True))


def test_compiled_code_asserts_on_labels_out_of_range():
    container = DynamicClassContainer(7, 2, 20, "refresh")
    enqueue = torch.compile(container.enqueue, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"labels must be below num_classes = 20, got a row that does not"):
        enqueue(*rows([1, 20]))


CONSTRUCTION = {
    "capacity": (dict(capacity=0), ValueError, r"DynamicClassContainer: capacity must be at least 1, got 0"),
    "dim": (dict(dim=0), ValueError, r"DynamicClassContainer: dim must be at least 1, got 0"),
    "num_classes": (dict(num_classes=-3), ValueError, r"num_classes must be at least 1, got -3"),
    "policy": (dict(policy="lru"), ValueError, r"policy must be one of \('fifo', 'refresh'\), got 'lru'"),
    "refresh": (
        dict(policy="refresh"),
        ValueError,
        r'num_classes must be given with policy="refresh", got None; .* or use policy="fifo"',
    ),
    "dtype": (dict(dtype=torch.int8), TypeError, r"dtype must be one of .*, got torch.int8"),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction_errors(case):
    options, kind, message = CONSTRUCTION[case]
    with pytest.raises(kind, match=message):
        DynamicClassContainer(**dict(dict(capacity=4, dim=2), **options))


ENQUEUE = {
    "batch": (rows([0] * 5), ValueError, r"centers must have at most capacity = 4 rows, got 5; use a larger capacity"),
    "dim": ((torch.ones(2, 3), torch.tensor([1, 2])), ValueError, r"centers must have shape \[rows, 2\], got \[2, 3\]"),
    "rank": ((torch.ones(2), torch.tensor([1])), ValueError, r"centers must have shape \[rows, 2\], got \[2\]"),
    "length": ((torch.ones(2, 2), torch.tensor([1])), ValueError, r"labels must have shape \[2\], as .*, got \[1\]"),
    "integer": ((torch.ones(1, 2).long(), torch.tensor([1])), TypeError, r"centers must have a float.* torch.int64"),
    "label dtype": (
        (torch.ones(1, 2), torch.tensor([1], dtype=torch.int32)),
        TypeError,
        r"labels must have dtype torch.int64, got torch.int32; labels.long\(\)",
    ),
    "device": (
        (torch.ones(1, 2, device="meta"), torch.tensor([1])),
        ValueError,
        r"centers must be on the container's device cpu, got meta",
    ),
    "label": (rows([3, -1, 10]), ValueError, r"labels must be below num_classes = 10, got 10 in row 2"),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", ENQUEUE)
def test_enqueue_errors_leave_the_container_as_it_was(case, policy):
    batch, kind, message = ENQUEUE[case]
    container = DynamicClassContainer(4, 2, 10, policy)
    container.enqueue(*rows([1, 2]))
    before = copy.deepcopy(container.state_dict())
    with pytest.raises(kind, match=r"DynamicClassContainer\.enqueue: " + message):
        container.enqueue(*batch)
    assert same_state(before, container.state_dict())


def test_age_counts_the_rows_since():
    fifo = DynamicClassContainer(4, 2)
    fifo.enqueue(*rows([3, 3, -1, 7]))
    assert fifo.age[:3].tolist() == [2, 1, 0]
    fifo.enqueue(*rows([1, 2]))
    assert fifo.age.tolist() == [0, 3, 2, 1]  # the second wrapped around
    refresh = DynamicClassContainer(4, 2, 9, "refresh")
    refresh.enqueue(*rows([3, 5, 7]))
    refresh.enqueue(*rows([5, -1]))
    assert refresh.age[:3].tolist() == [4, 1, 2]


def test_lookup_needs_one_slot_a_class():
    with pytest.raises(ValueError, match="lookup: policy must be \"refresh\", got 'fifo'"):
        DynamicClassContainer(4, 2, 9).lookup(torch.tensor([1]))

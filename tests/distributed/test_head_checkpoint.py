"""A head saved by some processes goes on with others, bit for bit where one process can; damage and strangers."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_cases import MAPPING, RESIZED, SAVED, Trainee, begin_sharded, go_on, go_on_sharded, resized
from group import run

from attfc_cuda import AdaSin, AttFC, FullyConnected, PartialFC
from attfc_cuda.compat.insightface import PartialFC_V2
from attfc_cuda.distributed import checkpoint as head_checkpoint
from attfc_cuda.distributed.split_state import parts_of


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict, list[dict]]:
    """(folder of the checkpoints of two processes, the losses that followed, [rank] what they hold when resized)."""
    folder = str(tmp_path_factory.mktemp("by_two"))
    (losses, first), (other, second) = run(2, begin_sharded, folder)
    assert all(torch.equal(a, b) for name in SAVED for a, b in zip(losses[name], other[name], strict=True))
    return folder, losses, [first, second]


@pytest.fixture(scope="module")
def by_three(by_two: tuple, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """[rank]: the same steps by three processes, from what one has read and written again."""
    folder = str(tmp_path_factory.mktemp("by_one"))
    go_on(by_two[0], folder, None)
    return run(3, go_on_sharded, folder, None)


@pytest.mark.proof
def test_two_one_three(by_two: tuple, by_three: list) -> None:
    folder, expected, _ = by_two
    one = go_on(folder, None, None)
    for name in SAVED:
        for losses in (one, *by_three):
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-13, atol=1e-13, msg=name)
        assert expected[name][0] != expected[name][1]


def test_the_state_of_the_optimizer_matters(by_two: tuple) -> None:
    folder, expected, _ = by_two
    for name in ("fc, fused sgd", "fc, own sgd", "fc, fused adamw"):
        trainee = Trainee(name, None)
        head_checkpoint.load(trainee.head, Path(folder) / name)
        first, second = trainee.step(2), trainee.step(3)
        torch.testing.assert_close(first, expected[name][0], rtol=1e-13, atol=0)
        assert abs(second - expected[name][1]) > 1e-6


@pytest.mark.parametrize("name", RESIZED)
def test_resize_classes(name: str, by_two: tuple) -> None:
    folder, _, resized_by_two = by_two
    before = Trainee(name, None)
    head_checkpoint.load(before.head, Path(folder) / name, before.optimizer)
    after = resized(folder, name, None)
    kept = MAPPING >= 0
    if isinstance(before.head, FullyConnected):
        old = parts_of(before.head, before.optimizer)
        assert old.keys() == after["split"].keys() and (len(old) > 1 or name == "partial fc")
        for key, value in after["split"].items():
            assert torch.equal(value[kept], old[key].tensor[MAPPING[kept]]), key
            if key == "centers":
                assert 0.005 < value[~kept].std() < 0.02
            else:
                assert (value[~kept] == 0).all(), key
    else:
        container = before.head.container
        new = after["state"]["container.labels"]
        for slot, label in enumerate(container.labels.tolist()):
            wanted = MAPPING.tolist().index(label) if label in MAPPING[kept].tolist() else -1
            assert new[slot] == wanted
        assert (container.labels >= 0).sum() > (new >= 0).sum() > 0
    for found in (rank[name] for rank in resized_by_two):
        torch.testing.assert_close(found["loss"], after["loss"], rtol=1e-13, atol=1e-13)
    for key, value in after["split"].items():
        parts = [rank[name]["split"][key] for rank in resized_by_two]
        assert torch.equal(torch.cat(parts), value), key
    if "centers" not in after["split"]:
        for key in ("container.labels", "container.clock"):
            assert torch.equal(resized_by_two[0][name]["state"][key], after["state"][key])


def test_refresh_goes_on_after_resizing() -> None:
    """Emptied slots are filled first, whatever the age of the others, and no two slots share a stamp."""
    head = SAVED["attfc refresh"].head(dtype=torch.float32, backend="eager")
    container = head.container
    container.enqueue(torch.eye(10, 16), torch.arange(10))
    head.resize_classes(torch.tensor([0, 9, -1]))
    assert container.labels.tolist() == [0] + [-1] * 8 + [1]
    assert len(set(container.stamps.tolist())) == 10
    container.enqueue(torch.eye(2, 16), torch.tensor([2, 1]))
    assert container.labels.tolist() == [0, 2] + [-1] * 7 + [1]
    assert container.slot_of_class[:3].tolist() == [0, 9, 1]


MAPPINGS = [
    (torch.tensor([[1]]), ValueError, "mapping must have shape [N], one old class for each new one, got [1, 1]"),
    (torch.tensor([]), ValueError, "mapping must have shape [N], one old class for each new one, got [0]"),
    (torch.tensor([1.0]), TypeError, "mapping must have dtype torch.int64, got torch.float32; mapping.long()"),
    (torch.tensor([0, 13]), ValueError, "and below 13, or be -1, got 13 for new class 1"),
    (torch.tensor([0, -2]), ValueError, "and below 13, or be -1, got -2 for new class 1"),
    (torch.tensor([3, 0, 3]), ValueError, "mapping must name each old class at most once, got 3 more than once"),
]


@pytest.mark.parametrize(("mapping", "kind", "message"), MAPPINGS)
@pytest.mark.parametrize("name", ["fc, own sgd", "attfc refresh"])
def test_a_wrong_mapping_is_refused(name: str, mapping: torch.Tensor, kind: type, message: str) -> None:
    head = SAVED[name].head(dtype=torch.float32, backend="eager")
    before = {key: value.clone() for key, value in head.state_dict().items()}
    with pytest.raises(kind, match=re.escape(f"resize_classes: {message}"[-len(message) :])):
        head.resize_classes(mapping)
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def head_in(folder: Path) -> FullyConnected:
    head = FullyConnected(4, 6, AdaSin())
    head_checkpoint.save(head, folder)
    return head


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "head"
    first, second, read = head_in(path), FullyConnected(4, 6, AdaSin()), FullyConnected(4, 6, AdaSin())

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    # In the middle of writing, and between the two renames.
    replace, calls = os.replace, []
    with monkeypatch.context() as patch:
        patch.setattr(dcp.FileSystemWriter, "finish", crash)
        with pytest.raises(OSError, match=r"save: path must be writable, got .*\(power cut\)"):
            head_checkpoint.save(second, path)
    head_checkpoint.load(read, path)
    assert torch.equal(read.centers, first.centers)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: crash() if calls else (calls.append(1), replace(a, b)))
        with pytest.raises(RuntimeError, match="power cut"):
            head_checkpoint.save(second, path)
    assert not path.exists()
    head_checkpoint.load(read, path)
    assert torch.equal(read.centers, first.centers)
    head_checkpoint.save(second, path)
    head_checkpoint.load(read, path)
    assert torch.equal(read.centers, second.centers)
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_damage_and_other_sizes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "head"
    head = head_in(path)
    with pytest.raises(ValueError, match=re.escape("hold centers of shape [7, 4], got [6, 4] in ")):
        head_checkpoint.load(FullyConnected(4, 7, AdaSin()), path)
    with pytest.raises(ValueError, match="must hold other.centers of the head, got .* without it"):
        head_checkpoint.load(torch.nn.ModuleDict({"other": FullyConnected(4, 6, AdaSin())}), path)
    with pytest.raises(ValueError, match="must be a complete checkpoint, got .* without a .metadata file"):
        head_checkpoint.load(head, tmp_path / "nothing")
    data = next(path.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-700])
    with pytest.raises(ValueError, match="must be a complete checkpoint, got "):
        head_checkpoint.load(head, path)
    shutil.copy(data, path / ".metadata")
    with pytest.raises(ValueError, match=r"must be a complete checkpoint, got .*\.metadata: "):
        head_checkpoint.load(head, path)


@pytest.mark.parametrize(
    ("saved", "wanted"), [(torch.float32, torch.float64), (torch.float32, torch.bfloat16)], ids=str
)
def test_another_dtype_is_named_and_nothing_is_converted(
    saved: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    """torch.distributed.checkpoint 2.14 converts what it reads into the dtype of what it reads into, without a word."""
    head = AttFC(8, 16, AdaSin(), dtype=saved, policy="fifo", class_code=0.0)
    head(torch.randn(4, 8), torch.arange(4), torch.randn(4, 8))
    head_checkpoint.save(head, tmp_path / "head")
    other = AttFC(8, 16, AdaSin(), dtype=wanted, policy="fifo", class_code=0.0)
    before = other.container.centers.clone()
    with pytest.raises(ValueError, match=f"hold container.centers in {wanted}, got {saved} in .*load into a head of"):
        head_checkpoint.load(other, tmp_path / "head")
    assert torch.equal(other.container.centers, before)


def test_centers_of_another_name_in_the_state_dict_are_saved_once(tmp_path: Path) -> None:
    heads = {"ours": PartialFC(4, 6, 1.0, AdaSin()), "theirs": PartialFC_V2(AdaSin(), 4, 6)}
    for name, head in heads.items():
        head_checkpoint.save(head, tmp_path / name)
        saved = dcp.FileSystemReader(tmp_path / name).read_metadata().state_dict_metadata
        assert saved.keys() == {"centers", "margin.t"}
    before = {name: head.centers.detach().clone() for name, head in heads.items()}
    for name, other in (("ours", "theirs"), ("theirs", "ours")):
        head_checkpoint.load(heads[other], tmp_path / name)
        assert torch.equal(heads[other].centers, before[name])


def test_a_head_of_another_kind_is_refused(tmp_path: Path) -> None:
    head_checkpoint.save(
        AttFC(4, 8, num_classes=6, policy="refresh", class_code=1.0, preset="published", enqueue="before"),
        tmp_path / "head",
    )
    plain = AttFC(4, 8, num_classes=6, preset="published", enqueue="before")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match="names of the head alone, got .*container.stamps.* in .*; load into a head"):
        head_checkpoint.load(plain, tmp_path / "head")
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())


KINDS = {
    "sgd": lambda head: torch.optim.SGD(head.parameters(), 0.1, momentum=0.9),
    "adamw": lambda head: torch.optim.AdamW(head.parameters()),
    "adamw on the device": lambda head: torch.optim.AdamW(head.parameters(), fused=True),
    "fused sgd": lambda head: head.fuse_optimizer(0.1),
    "fused adamw": lambda head: head.fuse_optimizer(0.1, kind="adamw"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [*KINDS, "none"])
def test_the_optimizer_must_be_of_the_kind_that_was_saved(kind: str, saved: str, tmp_path: Path) -> None:
    first, second = FullyConnected(4, 6, AdaSin()), FullyConnected(4, 6, AdaSin())
    if saved == "none":
        head_checkpoint.save(first, tmp_path / "head")
    else:
        optimizer = KINDS[saved](first)
        first(torch.eye(4), torch.arange(4)).backward()
        optimizer.step()
        head_checkpoint.save(first, tmp_path / "head", optimizer)
    optimizer = KINDS[kind](second)
    if ("adamw" in kind) == ("adamw" in saved) and saved != "none":
        head_checkpoint.load(second, tmp_path / "head", optimizer)
        second(torch.eye(4), torch.arange(4)).backward()
        optimizer.step()
        assert optimizer.state[second.centers].get("step", 2) == 2
    else:
        with pytest.raises(ValueError, match="of centers's optimizer, got .*; give the kind of optimizer that was"):
            head_checkpoint.load(second, tmp_path / "head", optimizer)
    head_checkpoint.load(second, tmp_path / "head")  # without one what was saved of it does not matter


def steps(head: FullyConnected, optimizer: torch.optim.Optimizer, count: int) -> torch.Tensor:
    for _ in range(count):
        head(torch.eye(4), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head.centers.detach().clone()


@pytest.mark.parametrize("parts_only", [False, True])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("kind", [*KINDS, "dampened", "without momentum"])
def test_an_optimizer_is_saved_before_its_first_step(
    kind: str, steps_before: int, parts_only: bool, tmp_path: Path
) -> None:
    """And goes on as one does that starts, also where it had taken steps itself."""
    others = {
        "dampened": lambda head: torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, dampening=0.5),
        "without momentum": lambda head: torch.optim.SGD(head.parameters(), 0.1),
    }
    first, second = FullyConnected(4, 6, AdaSin()), FullyConnected(4, 6, AdaSin())
    begun, goes_on = ((KINDS | others)[kind](head) for head in (first, second))
    steps(second, goes_on, steps_before)
    head_checkpoint.save(first, tmp_path / "head", begun, parts_only=parts_only)
    if parts_only:  # what the caller keeps, which says what the optimizer has of each parameter
        second.load_state_dict({**first.state_dict(), "centers": second.centers})
        goes_on.load_state_dict(copy.deepcopy(begun.state_dict()))
    head_checkpoint.load(second, tmp_path / "head", goes_on, parts_only=parts_only)
    assert torch.equal(first.centers, second.centers)
    assert torch.equal(steps(first, begun, 2), steps(second, goes_on, 2))


def test_class_codes_come_and_go_with_a_checkpoint(tmp_path: Path) -> None:
    resized, plain = (
        AttFC(4, 8, num_classes=6, policy="refresh", class_code=1.0, preset="published", enqueue="before")
        for _ in range(2)
    )
    resized.resize_classes(torch.tensor([5, -1, 1, 0, 2, 3]))
    codes = resized.code_of_class.clone()
    head_checkpoint.save(resized, tmp_path / "resized")
    head_checkpoint.save(plain, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"hold container.centers of shape \[9, 4\]"):
        head_checkpoint.load(
            other := AttFC(4, 9, num_classes=6, policy="refresh", class_code=1.0, preset="published", enqueue="before"),
            tmp_path / "resized",
        )
    assert other.code_of_class is None
    head_checkpoint.load(resized, tmp_path / "plain")
    assert resized.code_of_class is None
    head_checkpoint.load(plain, tmp_path / "resized")
    assert torch.equal(plain.code_of_class, codes)


# Written by version 0.1, whose functions and classes had other names.
OLD = Path(__file__).parent / "written_by_0_1"


def test_a_checkpoint_of_an_earlier_version_loads() -> None:
    head = FullyConnected(4, 6, AdaSin())
    optimizer = head.fuse_optimizer(0.1, kind="adamw")
    head_checkpoint.load(head, OLD / "fc", optimizer)
    expected, state = torch.arange(24.0).view(6, 4), optimizer.state[head.centers]
    assert torch.equal(head.centers, expected) and head.margin.t == 0.25
    assert torch.equal(state["exp_avg"], -expected) and torch.equal(state["exp_avg_sq"], expected + 1)
    assert state["step"] == 7
    head = AttFC(4, 8, num_classes=6, policy="refresh", class_code=1.0, preset="published", enqueue="before")
    head_checkpoint.load(head, OLD / "attfc")
    stored, held = head.container.lookup(torch.tensor([3, 1, 5, 0, 2]))
    assert torch.equal(stored[:4], torch.eye(4)) and held.tolist() == [True] * 4 + [False] and head.margin.t == 0.5


def test_old_names_of_functions_and_keywords(tmp_path: Path) -> None:
    head = FullyConnected(4, 6, AdaSin())
    with pytest.warns(DeprecationWarning, match="stretches is now attfc_cuda.distributed.split_state.parts_of"):
        assert head_checkpoint.stretches is parts_of
    with pytest.warns(DeprecationWarning, match=r"save\(stretches_only=...\) is now parts_only="):
        head_checkpoint.save(head, tmp_path / "head", stretches_only=True)
    saved = dcp.FileSystemReader(tmp_path / "head").read_metadata().state_dict_metadata
    assert saved.keys() == {"centers"}
    with pytest.raises(AttributeError, match="has no attribute 'strides'"):
        getattr(head_checkpoint, "strides")  # noqa: B009


def test_an_optimizer_says_itself_what_of_its_state_is_split() -> None:
    """A head of one class: every state that has one number would pass for one with a row for each class."""
    head = FullyConnected(1, 1)
    optimizer = head.fuse_optimizer(0.1, kind="adamw")
    optimizer.make_state()["step"] = torch.zeros(1, 1)
    assert set(parts_of(head, optimizer)) == {"centers", "optimizer.centers.exp_avg", "optimizer.centers.exp_avg_sq"}


class Malice:
    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def test_a_stranger_s_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path, target = tmp_path / "head", tmp_path / "broken in"
    head = head_in(path)
    malice = Malice()
    malice.target = str(target)
    (path / ".metadata").write_bytes(pickle.dumps(malice))
    with pytest.raises(ValueError, match=r"\.metadata: (posix|nt)\.mkdir has no place in it"):
        head_checkpoint.load(head, path)
    # An entry that is no tensor would be unpickled by torch.
    state, path = {"centers": malice, "margin.t": head.margin.t}, tmp_path / "other"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=path, no_dist=True)
    with pytest.raises(ValueError, match=r"\.metadata: .*BytesStorageMetadata has no place in it"):
        head_checkpoint.load(head, path)
    (path / ".metadata").write_bytes(pickle.dumps(dcp.metadata.Metadata({"centers": torch.Size()})))
    with pytest.raises(ValueError, match=r"\.metadata: it must hold tensors alone"):
        head_checkpoint.load(head, path)
    assert not target.exists()

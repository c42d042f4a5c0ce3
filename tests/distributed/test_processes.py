"""The trainer on several processes is the trainer on one: the same losses; stopped, killed, resumed by others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from proofs import rest_in_proof

from attfc_cuda.cli import main
from attfc_cuda.train import checkpoint
from attfc_cuda.train.log import read_log

HERE = Path(__file__).resolve().parent
STEPS = 9
# GroupNorm: a row's embedding does not depend on who else is in its process's part of the batch.
COMMON = (
    "--data procedural:16x4 --image-size 16 --batch-size 8 --embedding-dim 16 --backbone-options norm=group --lr 0.05 "
    f"--steps {STEPS} --warmup 0 --log-every 1 --checkpoint-every 3 --keep 9 --device cpu --threads 1 --no-tensorboard "
    "--no-pictures --verify-every 0 --verify-num-pairs 20 --backend eager"
).split()
HEADS = {
    "fc": "--head fc --margin curricularface",
    "partial_fc": "--head partial_fc --margin adasin --sample-rate 1 --no-fuse-optimizer --optimizer adamw --lr 0.001",
    "partial_fc_fused": "--head partial_fc --margin adasin --sample-rate 0.7 --fuse-optimizer",
    "attfc": "--head attfc --capacity 33",
}


def torchrun(count: int, head: str, run: Path, *more: str, act: str = "") -> tuple[int, str]:
    """(exit code, output) of the command on `count` processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "ATTFC_ACT": act}
    if not act:
        del environment["ATTFC_ACT"]
    # After "--" torchrun does not take the script's options for abbreviations of its own.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--"]
    arguments = ["train", *COMMON, *HEADS[head].split(), "--run", str(run), *more]
    done = subprocess.run(
        [*command, str(HERE / "acting_train.py"), *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    return done.returncode, " ".join(done.stdout.split())


def losses(run: Path) -> dict[int, tuple[float, float]]:
    records = [record for record in read_log(run / "log.jsonl") if record["kind"] == "step"]
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in records}


def on_one_process(head: str, run: Path, *more: str) -> dict[int, tuple[float, float]]:
    assert main(["train", *COMMON, *HEADS[head].split(), "--no-progress", "--run", str(run), *more]) == 0
    return losses(run)


def bits(value: object) -> object:
    """A checkpoint in a form whose == compares bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def agree(found: dict, expected: dict) -> bool:
    """All steps, each to what rounding becomes in some steps of training."""
    return found.keys() == expected.keys() == set(range(1, STEPS + 1)) and all(
        found[step] == pytest.approx(expected[step], rel=1e-3) for step in expected
    )


def steps_saved(run: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in checkpoint.find(run / "checkpoints")]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """And a run of two goes on with one; each takes its share of a batch in parts, which changes nothing."""
    run = tmp_path / "run"
    code, output = torchrun(2, "fc", run, "--accumulate", "2", act=f"1 5 {int(signal.SIGTERM)}")
    assert code != 0
    assert f"stopped by SIGTERM after step 5 of {STEPS}, checkpoint {run}/checkpoints/step_00000005.pt; go on" in output
    assert f"go on with: torchrun --nproc-per-node 2 -m -- attfc_cuda.cli train --run {run} --resume" in output
    assert "processes 2, each with a part" in output
    assert steps_saved(run) == [5, 3]
    assert agree(on_one_process("fc", run, "--resume"), on_one_process("fc", tmp_path / "whole"))


def write_faces(folder: Path, count: int = 16) -> Path:
    """Four gray images of each of `count` identities, the same at each call."""
    for k in range(count):
        (folder / f"p{k:02d}").mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(10 * k + i).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"p{k:02d}" / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "what, words",
    [
        pytest.param(
            "workers",
            "attfc: train: the processes that prepare batches must go on, got: .*?, at rank 1 of 2; the state",
            marks=pytest.mark.proof,
        ),
        ("data", "attfc: AttentionLoader: the data set must have at most a share of .*?, at rank 1 of 2; the state"),
    ],
)
def test_a_process_without_a_batch_stops_all_after_the_same_step(tmp_path: Path, what: str, words: str) -> None:
    """With the cause by name; and a run of one process goes on, where a worker was lost as if nothing had been."""
    run = tmp_path / "run"
    for name in "01":
        write_faces(tmp_path / f"faces{name}")
    data = ("--cache", "off", "--data")
    more = ("--workers", "1") if what == "workers" else ()
    code, output = torchrun(2, "fc", run, *more, *data, str(tmp_path / "faces{rank}"), act=f"1 5 {what}")
    assert code != 0
    found = re.findall(words + rf" after step (\d) is in {run}/checkpoints/step_0000000\d.pt: torchrun --n", output)
    assert len(set(found)) == 1, output  # torchrun may end the second one before it speaks
    # A worker may have had some batches ready; rows of two parts are unreadable before there are as many as in a batch.
    stopped_after = int(found[0])
    assert stopped_after >= 5 if what == "workers" else stopped_after == 6
    assert steps_saved(run) == sorted({3, stopped_after}, reverse=True)
    resumed = on_one_process("fc", run, "--resume", *data, str(tmp_path / "faces0"))
    whole = on_one_process("fc", tmp_path / "whole", *data, str(tmp_path / "faces0"))
    assert agree(resumed, whole) if what == "workers" else resumed.keys() == whole.keys()


@pytest.mark.proof
@pytest.mark.parametrize("head", ["partial_fc", "attfc"])
def test_two_processes_carry_classes_as_one_does(tmp_path: Path, head: str) -> None:
    """Identities are gone: the two go on from one process's checkpoint with the losses that one has. (A new one would
    have a centre that each number of processes draws anew.)"""
    faces, one, two = write_faces(tmp_path / "faces"), tmp_path / "one", tmp_path / "two"
    data = ("--data", str(faces))
    on_one_process(head, one, *data)
    for step in (6, 9):
        checkpoint.delete([checkpoint.path_of(one / "checkpoints", step)])
    shutil.copytree(one, two)
    shutil.rmtree(faces / "p03")
    shutil.rmtree(faces / "p07")
    more = (*data, "--resume", "--carry-classes")
    code, output = torchrun(2, head, two, *more)
    assert code == 0, output
    notes = [record["text"] for record in read_log(two / "log.jsonl") if record["kind"] == "note"]
    assert len(notes) == 1 and "kept 14 of 16 identities, 0 are new" in notes[0]
    assert agree(losses(two), on_one_process(head, one, *more))


@pytest.mark.proof
def test_a_killed_process_ends_the_run_and_three_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = torchrun(2, "attfc", run, act=f"1 5 {int(signal.SIGKILL)}")
    assert code != 0
    assert "attfc: train: all 2 processes must go on, got no answer from another one at rank 0 (" in output
    assert "goes on from its last checkpoint, with as many processes as there are: torchrun --nproc-per-node" in output
    assert "Traceback" not in output.split("attfc: train:")[0]
    assert steps_saved(run) == [3]
    code, output = torchrun(3, "attfc", run, "--resume")
    assert code == 0, output
    assert f"done: {STEPS} steps" in output
    assert agree(losses(run), on_one_process("attfc", tmp_path / "whole"))


def parts_and_state(run: Path, step: int) -> tuple[dict, dict[str, bytes]]:
    """What a checkpoint of several processes holds, without what clocks and folders put in."""
    path = checkpoint.path_of(run / "checkpoints", step)
    state = checkpoint.load(path)
    shards = checkpoint.shards_of(path, state)
    for varying in ("seconds", "config", "shards", "shards_crc32"):
        del state[varying]
    # torch's description of the files has a number drawn for it.
    return bits(state), {file.name: file.read_bytes() for file in shards.iterdir() if file.name != ".metadata"}


@pytest.mark.proof
@pytest.mark.parametrize("head", ["attfc", "partial_fc_fused"])
def test_training_goes_on_while_all_write_and_resumes_bit_equal(tmp_path: Path, head: str) -> None:
    """The parts are written three steps after they were begun; what is written is of the moment at which they were."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, output = torchrun(2, head, whole)
    assert code == 0, output
    code, output = torchrun(2, head, run, "--checkpoint-every", "4", act="* 4 late")
    assert code == 0, output
    assert re.findall(r"in step (\d), saved: (\[.*?\])", output) == [("7", "[]")] * 2
    for step in (8, 9):
        checkpoint.delete([checkpoint.path_of(run / "checkpoints", step)])
    assert steps_saved(run) == [4]
    code, output = torchrun(2, head, run, "--resume")
    assert code == 0, output
    assert losses(run) == losses(whole)
    (state, parts), expected = parts_and_state(run, STEPS), parts_and_state(whole, STEPS)
    assert len(parts) == (2 if head == "attfc" else 4) and all(len(part) > 1000 for part in parts.values())
    assert (state, parts) == expected


@pytest.mark.parametrize(
    ("act", "where"),
    rest_in_proof([("1 4 full", ", at rank 1 of 2"), ("0 4 file full", "")]),
    ids=["a part", "the file"],
)
def test_a_write_that_fails_on_one_process_is_the_error_of_all(tmp_path: Path, act: str, where: str) -> None:
    run = tmp_path / "run"
    code, output = torchrun(2, "attfc", run, "--steps", "1000", act=act)
    assert code != 0
    reason = rf"\[Errno 28\] No space left on device{where}; the checkpoints before it are whole: make room"
    found = re.findall(rf"attfc: checkpoint: {run}/checkpoints/step_00000006.pt must be written, got {reason}", output)
    assert len(found) in (1, 2), output  # torchrun may end the second one before it speaks
    assert "LostProcess" not in output and "no answer from another" not in output
    assert checkpoint.load(checkpoint.find(run / "checkpoints")[0])["step"] == 3 and steps_saved(run) == [3]
    left = {path.name for path in (run / "checkpoints").iterdir()} - {"step_00000003.pt", "step_00000003.shards"}
    assert left == ({"step_00000006.shards"} if "file" in act else set())
    assert len(losses(run)) < 20


@pytest.mark.parametrize("rank", rest_in_proof(["1", "0", "*"]))
def test_killed_while_they_write_they_go_on_from_the_checkpoint_before(tmp_path: Path, rank: str) -> None:
    run = tmp_path / "run"
    code, output = torchrun(2, "attfc", run, act=f"{rank} 4 killed")
    assert code != 0 and "done:" not in output
    assert steps_saved(run) == [3]
    left = checkpoint.path_of(run / "checkpoints", 6).with_suffix(".shards")
    assert any(file.read_bytes() == b"half of it" for file in left.iterdir())
    code, output = torchrun(2, "attfc", run, "--resume")
    assert code == 0, output
    assert steps_saved(run) == [9, 6, 3]
    assert agree(losses(run), on_one_process("attfc", tmp_path / "whole"))


@pytest.mark.proof
def test_probes_and_steps_that_share_a_gallery_over_two_processes(tmp_path: Path) -> None:
    """With identities in both parts of a batch; and a run that stops between steps of a gallery goes on as it was."""
    run, more = tmp_path / "run", ("--probes-per-identity", "3", "--gallery-steps", "2")
    code, output = torchrun(2, "attfc", run, *more, act=f"1 5 {int(signal.SIGTERM)}")
    assert code != 0 and "after step 5 of" in output
    code, output = torchrun(2, "attfc", run, "--resume", *more)
    assert code == 0, output
    assert agree(losses(run), on_one_process("attfc", tmp_path / "whole", *more))


def test_one_process_s_checkpoint_goes_on_with_two(tmp_path: Path) -> None:
    """With the centres in the optimizer and in the norm of all gradients, which is clipped."""
    run, clip = tmp_path / "run", ("--clip-norm", "0.5")
    on_one_process("partial_fc", run, *clip)
    for step in (6, 9):
        checkpoint.delete([checkpoint.path_of(run / "checkpoints", step)])
    code, output = torchrun(2, "partial_fc", run, "--resume", *clip)
    assert code == 0, output
    assert steps_saved(run) == [9, 6, 3]
    assert agree(losses(run), on_one_process("partial_fc", tmp_path / "whole", *clip))
    assert all(norm > 0.5 for _, norm in losses(run).values())


def test_processes_with_other_data_stop_before_the_first_step(tmp_path: Path) -> None:
    code, output = torchrun(2, "attfc", tmp_path / "run", act="1 -1 16x5")
    assert code != 0
    assert "attfc: train: data must be the same on all 2 processes, got identities and images" in output
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_its_shards_is_passed_over(tmp_path: Path) -> None:
    state = {"processes": 2}
    for step in (1, 2):
        checkpoint.save(state, tmp_path, step, keep=3)
    shards = checkpoint.shards_of(checkpoint.path_of(tmp_path, 1), {})
    shards.mkdir()
    (shards / ".metadata").touch()
    said: list[str] = []
    assert checkpoint.load_newest(tmp_path, said.append)["step"] == 1
    assert "must have its shards beside it, got no step_00000002.shards" in said[0]
    checkpoint.announce(tmp_path, 3)
    for left in ("step_00000003.shards.tmp", "step_00000003.shards"):  # by a run that was killed while it saved
        (tmp_path / left).mkdir()
    checkpoint.save(state, tmp_path, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002.pt", "step_00000004.pt"]

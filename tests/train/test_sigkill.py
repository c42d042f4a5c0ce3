"""SIGKILL at any moment leaves a checkpoint that loads, and the run that goes on from it ends bit-equal.

ATTFC_TEST_KILLS sets how many kills of each head `make proof` makes (10); `make test` makes three in all. Each run is
the command itself, `attfc train`, in a process of its own: a server that has imported everything forks it, so that a
kill falls into the run and not into the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attfc_cuda import cli
from attfc_cuda.train import TrainConfig, checkpoint
from attfc_cuda.train.log import read_log

KILLS = int(os.environ.get("ATTFC_TEST_KILLS", "10"))
STEPS = 12
LONGEST_S = 600  # a limit against hanging, not a measure

if not hasattr(os, "fork"):
    pytest.skip("no SIGKILL and no fork on this system", allow_module_level=True)


def attfc_train(arguments: list[str], started: multiprocessing.Event) -> None:
    """The child: `attfc train`, its exit code the process's."""
    torch.set_num_threads(1)
    started.set()
    raise SystemExit(cli.main(["train", *arguments]))


class Runner:
    """Starts runs, kills some, and notes how the checkpoints look after each kill."""

    def __init__(self, config: TrainConfig) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["attfc_cuda.cli"])
        self.settings = config.run.run.parent / "settings.json"
        config.save(self.settings)

    def start(self, folder: Path) -> multiprocessing.Process:
        """A run in `folder`, resumed where there is a checkpoint to resume from."""
        arguments = ["--config", str(self.settings), "--run", str(folder), "--no-tensorboard", "--no-progress"]
        if checkpoint.find(folder / "checkpoints"):
            arguments.append("--resume")
        started = self.context.Event()
        process = self.context.Process(target=attfc_train, args=(arguments, started), daemon=True)
        process.start()
        assert started.wait(LONGEST_S), "the run did not start"
        return process

    def finish(self, folder: Path) -> float:
        """Let a run in `folder` come to its end; its seconds."""
        begin = time.perf_counter()
        process = self.start(folder)
        process.join(LONGEST_S)
        assert process.exitcode == 0
        return time.perf_counter() - begin

    def kill(self, folder: Path, after: float) -> bool:
        """Start a run and SIGKILL it `after` seconds later; False where it had ended by then."""
        process = self.start(folder)
        process.join(after)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
        process.join(LONGEST_S)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0


def bits(value: object) -> object:
    """A checkpoint in a form whose == compares bits."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def ending(folder: Path) -> tuple[dict, list]:
    """The last checkpoint and every step's numbers, without what the clock and the folder's name put in."""
    state = checkpoint.load(checkpoint.find(folder / "checkpoints")[0])
    for varying in ("seconds", "config"):
        del state[varying]
    clock = ("seconds", "images_per_s", "eta_s")
    steps = [record for record in read_log(folder / "log.jsonl") if record["kind"] == "step"]
    return bits(state), [{key: value for key, value in step.items() if key not in clock} for step in steps]


# AttFC has a container, an encoder and a curriculum to restore; Partial FC draws from torch's generator at every step.
@pytest.mark.parametrize(
    "head, wanted",
    [
        ("attfc", 2),
        ("partial_fc", 1),
        *(pytest.param(head, KILLS, marks=pytest.mark.proof) for head in ("attfc", "partial_fc")),
    ],
)
def test_killed_at_random_moments_and_resumed_ends_bit_equal(
    tiny_config: Callable[..., TrainConfig], head: str, wanted: int
) -> None:
    config = tiny_config("whole", head=head, sample_rate=0.7, steps=STEPS, checkpoint_every=1, keep=2)
    runner, root = Runner(config), config.run.run.parent
    runner.finish(root / "warm")  # the server imports once, and the kernels are found
    duration = runner.finish(root / "whole")
    whole = ending(root / "whole")
    assert len(whole[1]) == STEPS

    moment = random.Random(head)
    kills, number, interrupted_at, cut_writes = 0, 0, [], 0
    while kills < wanted:
        folder = root / f"run{number}"
        if not runner.kill(folder, moment.uniform(0, duration)):
            assert ending(folder) == whole
            number += 1
            continue
        kills += 1
        paths = checkpoint.find(folder / "checkpoints")
        for path in paths:  # every file of a checkpoint's name is a whole checkpoint, the newest as well
            assert checkpoint.load(path)["step"] == int(path.stem.removeprefix("step_"))
        interrupted_at.append(checkpoint.load(paths[0])["step"] if paths else 0)
        cut_writes += len(list((folder / "checkpoints").glob("*.tmp")))
        print(f"kill {kills} of {wanted}: newest checkpoint {interrupted_at[-1]}", flush=True)
    runner.finish(root / f"run{number}")
    assert ending(root / f"run{number}") == whole
    print(f"{kills} kills in {number + 1} runs, newest checkpoints {interrupted_at}, {cut_writes} writes cut short")


def test_a_checkpoint_cut_short_under_its_own_name_would_be_seen(tiny_config: Callable[..., TrainConfig]) -> None:
    """The assertion above can fail: what an in-place writer leaves when it is killed does not load."""
    folder = tiny_config().run.run / "checkpoints"
    path = checkpoint.save({"weight": torch.zeros(100)}, folder, 3, keep=1)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(path)

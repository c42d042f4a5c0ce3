"""SIGKILL at any moment leaves a checkpoint that loads, SIGTERM to a run and its workers saves one, and the run that
goes on from it ends bit-equal.

ATTFC_TEST_KILLS sets how many SIGKILLs of each head `make proof` makes (25; and two fifths as many SIGTERMs);
`make test` makes three in all. Each run is the command itself, `attfc train`, in a process of its own: a server that
has imported everything forks it, so that a signal falls into the run and not into the imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from proofs import rest_in_proof
from torch import Tensor

from attfc_cuda import cli
from attfc_cuda.train import TrainConfig, checkpoint
from attfc_cuda.train.log import read_log

KILLS = int(os.environ.get("ATTFC_TEST_KILLS", "25"))
TERMS = KILLS * 2 // 5
STEPS = 12
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
LONGEST_S = 600  # a limit against hanging, not a measure

if not hasattr(os, "fork"):
    pytest.skip("no SIGKILL and no fork on this system", allow_module_level=True)


def attfc_train(arguments: list[str], started: multiprocessing.Event) -> None:
    """The child: `attfc train` in a group of its own, with its workers; its exit code the process's."""
    os.setpgrp()
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
        process = self.context.Process(target=attfc_train, args=(arguments, started))
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

    def stop(self, folder: Path, number: signal.Signals, after: float) -> bool:
        """Start a run and send its group a signal `after` seconds later; False where it had ended by then. SIGTERM is
        sent once the run minds it, from its first record on."""
        before, process = begins(folder), self.start(folder)
        if number == signal.SIGTERM:
            while process.exitcode is None and begins(folder) == before:
                process.join(0.005)
        process.join(after)
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        process.join(LONGEST_S)
        if process.exitcode == -signal.SIGTERM:  # it came when the run was over and the process was not
            assert read_log(folder / "log.jsonl")[-1]["kind"] == "end"
            return False
        assert process.exitcode in (0, EXIT_CODES[number]), process.exitcode
        return process.exitcode != 0


def begins(folder: Path) -> int:
    """How often a run has begun or gone on in `folder`."""
    log = folder / "log.jsonl"
    return sum(record["kind"] in ("start", "resume") for record in read_log(log)) if log.exists() else 0


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
HEADS = ("attfc", "partial_fc")
KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize(
    "head, number, wanted",
    rest_in_proof(
        [("attfc", KILL, 2), ("attfc", TERM, 1)]
        + [(head, number, wanted) for number, wanted in ((KILL, KILLS), (TERM, TERMS)) for head in HEADS],
        at_once=2,
    ),
)
def test_stopped_at_random_moments_and_resumed_ends_bit_equal(
    tiny_config: Callable[..., TrainConfig], head: str, number: signal.Signals, wanted: int
) -> None:
    workers = 2 if number == TERM else 0
    config = tiny_config("whole", head=head, sample_rate=0.7, steps=STEPS, checkpoint_every=1, keep=2, workers=workers)
    runner, root = Runner(config), config.run.run.parent
    runner.finish(root / "warm")  # the server imports once, and the kernels are found
    duration = runner.finish(root / "whole")
    whole = ending(root / "whole")
    assert len(whole[1]) == STEPS

    moment = random.Random(f"{head} {number}")
    stops, run, stopped_at, cut_writes = 0, 0, [], 0
    while stops < wanted:
        folder = root / f"run{run}"
        if not runner.stop(folder, number, moment.uniform(0, duration if number == KILL else duration / 3)):
            assert ending(folder) == whole
            run += 1
            continue
        stops += 1
        paths = checkpoint.find(folder / "checkpoints")
        for path in paths:  # every file of a checkpoint's name is a whole checkpoint, the newest as well
            assert checkpoint.load(path)["step"] == int(path.stem.removeprefix("step_"))
        stopped_at.append(checkpoint.load(paths[0])["step"] if paths else 0)
        if number == TERM:  # what was done is saved, and said
            note = read_log(folder / "log.jsonl")[-1]
            assert note["kind"] == "note" and f"stopped by SIGTERM after step {stopped_at[-1]} of" in note["text"]
        cut_writes += len(list((folder / "checkpoints").glob("*.tmp")))
        print(f"{number.name} {stops} of {wanted}: newest checkpoint {stopped_at[-1]}", flush=True)
    runner.finish(root / f"run{run}")
    assert ending(root / f"run{run}") == whole
    print(f"{stops} stops in {run + 1} runs, newest checkpoints {stopped_at}, {cut_writes} writes cut short")


def test_a_checkpoint_cut_short_under_its_own_name_would_be_seen(tiny_config: Callable[..., TrainConfig]) -> None:
    """The assertion above can fail: what an in-place writer leaves when it is killed does not load."""
    folder = tiny_config().run.run / "checkpoints"
    path = checkpoint.save({"weight": torch.zeros(100)}, folder, 3, keep=1)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(path)

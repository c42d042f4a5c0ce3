"""Text that is read line by line or as JSON: lists of faces and pairs, InsightFace's configs, a run's own files."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

from fuzz_parts import PICTURES, Target, changed_value, check_named, check_printable, odd_value
from fuzz_records import drain, strictly_too, write_anew

from attfc_cuda.compat.insightface import read_config, train_config
from attfc_cuda.data import ListFaces
from attfc_cuda.evaluation import read_ijb, read_pairs
from attfc_cuda.train import TrainConfig
from attfc_cuda.train.log import RunLog, read_log
from attfc_cuda.train.manifest import FORMAT, Manifest

_IJB = {
    "x_face_tid_mid.txt": b"a.jpg 1 10\nb.jpg 1 11\nc.jpg 7 12\n",
    "x_template_pair_label.txt": b"1 7 1\n7 1 0\n",
    "x_name_5pts_score.txt": b"".join(b"%c.jpg 1 2 3 4 5.5 6 7 8 9 10 0.9\n" % name for name in b"abc"),
}
_WORDS = (
    b"", b"0", b"1", b"-1", b"2", b"+1", b"01", b"1.5", b"nan", b"inf", b"-0.5", b"1e400", b"9" * 18, b"9" * 19,
    b"9" * 400, b"\xd9\xa1", b"\xff", b"\0", b"\x1b[2J", b"\xe2\x80\xa8", b"#", b"face.png", b"../face.png",
    b"/etc/hostname", b"/dev/zero", b".", b"a" * 300, b"b" * 70_000,
)  # fmt: skip


def list_seeds(folder: Path) -> list[bytes]:
    (folder / "face.png").write_bytes(PICTURES[1])
    return [
        b"face.png 0\nface.png\t1\n# no\nnone.png 5\n",
        b'name,path,identity\n1,face.png,ann\n2,"face.png",ben\n',
        b"face.png,0\nface.png,1\n",
        b"0\t3.0\tface.png\n1\t4.0\tface.png\n",
        b"1\tface.png\t0\n1\tface.png\t1\n",
        b"face.png 0 3 0\nface.png 0 4 0\n",
        b"1\t1\nann\t1\t2\nann\t1\tben\t1\n",
        b"2\nann 1 2\nann 3 4\nann 1 ben 1\nann 2 ben 2\n",
        b"a\tb\t1\t3\nc\td\t0\t1\n",
        *_IJB.values(),
    ]


def run_list(data: bytes, folder: Path) -> bool:
    """As a list of faces, as a pair list (LFW's too), and as one of IJB's lists, the other two being whole."""
    write_anew(folder / "a.txt", data)
    meta = folder / "meta"
    meta.mkdir(exist_ok=True)
    first = data.split(b"\n", 1)[0]
    changed = list(_IJB)[2 if len(first.split()) > 6 else 1 if b".jpg" not in first else 0]
    for name, whole in _IJB.items():
        (meta / name).write_bytes(data if name == changed else whole)
    read = False
    for function, path in ((lambda: read_pairs(folder / "a.txt", folder, check_files=False), folder / "a.txt"),
                           (lambda: read_ijb(folder), meta)):  # fmt: skip
        try:
            function()
            read = True
        except ValueError as cause:
            check_named(cause, path)
    return drain(strictly_too(ListFaces), folder / "a.txt") or read


def changed_lines(data: bytes, rng: random.Random) -> bytes:
    """Rows of words: a word replaced, repeated or left out, rows in another order, as many as before or not."""
    rows = [line.replace(b"\t", b" \t ").split(b" ") for line in data.split(b"\n")]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row, kind = rng.choice(rows), rng.randrange(6)
        at = rng.randrange(len(row))
        if kind < 2:
            row[at] = rng.choice(_WORDS)
        elif kind == 2:
            row[at] = rng.choice(rng.choice(rows))
        elif kind == 3:
            row.insert(at, rng.choice((row[at], rng.choice(_WORDS))))
        elif kind == 4:
            rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
        elif len(row) > 1 or len(rows) == 1:
            row[at : at + 1] = [b""]
        else:
            rows.remove(row)
    text = b"\n".join(b" ".join(row).replace(b" \t ", b"\t") for row in rows)
    return text.replace(b"\n", b"\r\n") if rng.random() < 0.1 else text


_CONFIG = """config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.sample_rate = 1
config.batch_size = 128
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.lr = 0.1 * 2
config.rec = "faces"
config.val_targets = ["lfw"]
"""
_HUGE = "1" + "0" * 400
_VALUES = (
    "1e999", "10**400", _HUGE, "'a' * 9", "None", "1j", "...", "-'x'", "b'a'", "[1] * 8", "config.rec", "0", "True",
    "(1, (2, 3), 'a')", "-1", "'r50'", "config.lr * 1e308", "{}", "f(1)", "x", "'\\u2028'", "1 // 0", "'x' * 10**9",
    "[0] * 99999999", "9" * 40, "(config.val_targets,) * 4000", "'\\x1b[2J'", "lambda: 0", "[" * 300 + "]" * 300,
    "-" * 500 + "1", "__import__('os').system('touch was_run')", "f'{1}'", "'a' 'b'", "(1.0, 0.0, 0.4)", "2.5",
)  # fmt: skip
_MARKS = ("", "(", "'", "\\", "\x0c", "*", ".", "é", "\0", "\x1b", "\t", ";", "#")


def config_seeds(folder: Path) -> list[bytes]:
    return [_CONFIG.encode(), b"from easydict import EasyDict as edict\n" + _CONFIG.replace("r50", "mbf").encode()]


def run_insightface_config(data: bytes, folder: Path) -> bool:
    path = folder / "config.py"
    path.write_bytes(data)
    try:
        settings = read_config(path)
    except ValueError as cause:
        return check_named(cause, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of margins that have no effect
            train_config(settings)[0].check()
    except ValueError as cause:
        return check_printable(cause)
    return True


def changed_config(data: bytes, rng: random.Random) -> bytes:
    """Assignments of other values, marks within a line, lines repeated or of another kind."""
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        index, how = rng.randrange(len(lines)), rng.randrange(4)
        line = lines[index]
        if how < 2 and "=" in line:
            lines[index] = f"{line.partition('=')[0]}= {rng.choice(_VALUES)}"
        elif how == 2:
            cut = rng.randrange(len(line) + 1)
            lines[index] = line[:cut] + rng.choice(_MARKS) + line[cut + 1 :]
        else:
            added = (line, "import os", "'text'", f"config.new = {rng.choice(_VALUES)}", "config.a = config.b = 1")
            lines.insert(index, rng.choice((*added, "config.optimizer = 'adamw'", "config['a'] = 1", "del config.lr")))
    return "\n".join(lines).encode()


def run_file_seeds(folder: Path) -> list[bytes]:
    """A config.json, a log.jsonl and a manifest.json; which of them a file is shows in its first bytes."""
    config = TrainConfig().to_dict()
    records = [
        {"kind": "start", "step": 0, "config": config, "report": "a\nb"},
        *({"kind": "step", "step": k, "loss": 1.5, "lr": 0.1, "positive_cosine": None} for k in range(1, 6)),
        {"kind": "note", "text": "x", "step": 3},
        {"kind": "end", "step": 5, "seconds": 1.0},
    ]
    files = ["config.json", "log.jsonl", "checkpoints/step_00000003.pt", "tensorboard/events"]
    return [
        json.dumps(config).encode(),
        b"".join(json.dumps(record).encode() + b"\n" for record in records),
        json.dumps({"format": FORMAT, "files": files}).encode(),
    ]


def run_run_files(data: bytes, folder: Path) -> bool:
    run = folder / "a run"
    run.mkdir(exist_ok=True)
    for name in ("config.json", "log.jsonl", "manifest.json"):
        (run / name).write_bytes(data)
    whole = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of earlier releases
            TrainConfig.load(run / "config.json").check()
        whole += 1
    except ValueError as cause:
        check_printable(cause)
    try:
        assert all(run in path.parents and ".." not in path.parts for path in Manifest(run).paths())
        whole += 1
    except ValueError as cause:
        check_named(cause, run / "manifest.json")
    before = read_log(run / "log.jsonl")
    with RunLog(run / "log.jsonl", total_steps=9, first_step=3, progress="none") as log:
        log.step(4, {"loss": 0.5, "images_per_s": 1.0})
    after = read_log(run / "log.jsonl")
    assert after[-1]["step"] == 4 and len(after) <= len(before) + 1
    return whole > 0 or len(after) > 1


def changed_run_files(data: bytes, rng: random.Random) -> bytes:
    """JSON with other values, keys and nesting; records cut short, repeated, in another order."""
    lines = data.rstrip(b"\n").split(b"\n")
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(lines)), rng.randrange(8)
        try:
            if kind < 5 or len(lines) == 1:
                lines[at] = json.dumps(changed_value(json.loads(lines[at]), rng, odd_value)).encode()
            elif kind == 5:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            elif kind == 6:
                lines.insert(rng.randrange(len(lines)), rng.choice((lines[at], b"[]", b"\xff", b"", b"null", b"1")))
            else:
                lines.append(lines.pop(at))
        except ValueError:  # a line that was cut, or a number of more digits than JSON's reader takes
            pass
    return b"\n".join(lines) + rng.choice((b"", b"\n"))


LISTS = Target(list_seeds, run_list, changed_lines)
INSIGHTFACE_CONFIG = Target(config_seeds, run_insightface_config, changed_config, 1.5)
RUN_FILES = Target(run_file_seeds, run_run_files, changed_run_files)

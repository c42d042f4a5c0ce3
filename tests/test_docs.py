"""Every block of Python in the documentation runs, every command in it exists with the flags that are given.

The blocks of a page run in order in one namespace and one empty folder. What a page does not show is in HTML comments:

    <!-- run first: CODE -->     Python that runs before the next block; `run after:` may hold assertions
    <!-- run -->                 the next shell block is run for real, not only checked
    <!-- syntax only: REASON --> the next block is only compiled (Python), or its commands are not looked up (shell)
    <!-- needs: LIBRARIES -->    the next block is left out where one of them is not installed
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from attfc_cuda import cli
from attfc_cuda.train import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOKEN = re.compile(r"^<!--(?P<comment>.*?)-->|^```(?P<language>\w*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
NOT_CODE = ("text", "json")
RUN_ELSEWHERE = {"README.md": "tests/test_readme.py runs its Python"}
# Shell functions that write down how they were called; no PATH leads to anything else.
RECORDER = r"""
set -eu
PATH=/nowhere
record() { printf '%s\0' "$@" >&3; printf '\n\0' >&3; }
for name in attfc python make pip torchrun accelerate git cmake ctest; do eval "$name() { record $name \"\$@\"; }"; done
cd() { :; }
command_not_found_handle() { echo "no such command: $1" >&2; return 127; }
"""


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of its first line of code, from 1
    only: str | None  # the reason for checking the syntax only
    run: bool
    needs: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """The blocks of a page in order, hidden Python ones included, each with what the comments before it say."""
    found, only, run, needs = [], None, False, ()
    for token in TOKEN.finditer(text):
        line = text.count("\n", 0, token.start("code" if token["comment"] is None else "comment")) + 1
        if token["comment"] is None:
            language = token["language"] or "shell"
            found.append(Block(language, token["code"], line, only, run, needs))
            only, run, needs = None, False, ()
            continue
        word, _, rest = token["comment"].partition(":")
        if word.strip() in ("run first", "run after"):
            # Its first line is that of the comment's own opening.
            found.append(Block("python", rest, line, None, True, ()))
        elif word.strip() == "syntax only":
            assert rest.strip(), f"line {line}: a block that is not run needs a reason"
            only = rest.strip()
        elif word.strip() == "needs":
            needs = tuple(name.strip() for name in rest.split(","))
        elif word.strip() == "run":
            run = True
    return found


def calls(code: str) -> list[list[str]]:
    """The commands of a shell block with their arguments, as bash itself expands them."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash to read the shell blocks with")
    process = subprocess.run(
        [bash, "-c", f"exec 3>&1 >/dev/null\n{RECORDER}\n{code}"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return [call.split("\0")[:-1] for call in process.stdout.split("\n\0")[:-1]]


def check_call(call: list[str]) -> None:
    """Raise AssertionError unless the command exists and takes these flags."""
    program, *arguments = call
    if program == "attfc":
        parse_attfc(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"no such target: {call}"
    elif program == "pip":
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= set(known), f"no such extra: {call}"
    elif program in ("python", "torchrun", "accelerate"):
        check_script(program, arguments)
    else:
        assert program == "git", f"not a command of these pages: {call}"


def parse_attfc(arguments: list[str]) -> object:
    if "--config" in arguments and arguments[0] == "train":  # its settings are the defaults, so it is read at once
        path = Path(arguments[arguments.index("--config") + 1])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            TrainConfig().save(path)
    try:
        return cli.parse(arguments)
    except SystemExit as end:
        assert end.code == 0, f"attfc does not take: {arguments}"  # 0: --help


def check_script(program: str, arguments: list[str]) -> None:
    """The script is one of ours and knows the flags: in its source, a module beside it, or those of `attfc train`."""
    if arguments[:2] == ["-m", "pytest"] and program == "python":
        paths = [argument for argument in arguments[2:] if "/" in argument]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths), f"no such test: {arguments}"
        return
    if "attfc_cuda.cli" in arguments:  # as a module, under torchrun
        parse_attfc(arguments[arguments.index("attfc_cuda.cli") + 1 :])
        return
    place = next((number for number, argument in enumerate(arguments) if argument.endswith(".py")), None)
    assert place is not None, f"no script in: {arguments}"
    script = ROOT / arguments[place]
    assert script.is_file(), f"no such script: {script}"
    beside = (script.parent / f"{name}.py" for name in re.findall(r"^import (\w+)", script.read_text(), re.MULTILINE))
    source = "\n".join(path.read_text() for path in (script, *beside) if path.is_file())
    flags = [flag for flag in arguments[place + 1 :] if flag.startswith("--")]
    if "cli.main" in source:
        parse_attfc(["train", *arguments[place + 1 :]])
    else:
        assert all(f'"{flag}"' in source for flag in flags), f"{script.name} does not take all of: {flags}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_blocks_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.relative_to(ROOT)}, line {block.line}"
        if any(importlib.util.find_spec(name) is None for name in block.needs):
            print(f"{where} left out: needs {', '.join(block.needs)}")
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.only is None and page.name not in RUN_ELSEWHERE:
                exec(code, namespace)
        elif block.language == "shell":
            commands = calls(block.code)
            assert commands, f"{where}: no command in it"
            for call in commands:
                if block.run:
                    assert call[0] == "attfc" and cli.main(call[1:]) == 0, f"{where}: {call}"
                elif block.only is None:
                    check_call(call)
        else:
            assert block.language in NOT_CODE, f"{where}: say what a block of {block.language!r} is checked by"


@pytest.mark.parametrize(
    "code",
    [
        "attfc train --no-such-flag 1",
        "attfc no-such-command",
        "attfc export --run a",
        "python examples/absent.py",
        "python examples/swap_head.py --no-such-flag",
        "python examples/full_fc_arcface.py --no-such-flag 1",
        "make no-such-target",
        'pip install ".[no_such_extra]"',
        "python -m pytest tests/absent/test_nothing.py",
        "torchrun --nproc-per-node 2 -m -- attfc_cuda.cli train --no-such-flag 1",
    ],
)
def test_a_wrong_command_is_seen(code: str) -> None:
    with pytest.raises(AssertionError):
        for call in calls(code):
            check_call(call)


def test_an_unknown_program_is_seen() -> None:
    with pytest.raises(AssertionError, match="no such command: frobnicate"):
        calls("frobnicate --now")


def test_the_shell_is_read_as_bash_reads_it() -> None:
    code = "DATA=faces  # a comment\nCOMMON=\"--data $DATA\n  --steps 3\"\nattfc train $COMMON --run 'a b'   # one\n"
    assert calls(code) == [["attfc", "train", "--data", "faces", "--steps", "3", "--run", "a b"]]


def test_blocks_are_found_with_what_is_said_of_them() -> None:
    text = (
        "<!-- run first:\nx = 1\n-->\n\n```python\nassert x == 1\n```\n<!-- an aside -->\n"
        "<!-- syntax only: a GPU -->\n```shell\nattfc info\n```\n<!-- needs: onnx, torch -->\n```\nmake\n```\n"
    )
    first, second, third, last = blocks(text)
    assert (first.code.strip(), first.line, second.line) == ("x = 1", 1, 6)
    assert (third.language, third.only, third.run) == ("shell", "a GPU", False)
    assert (last.language, last.only, last.needs) == ("shell", None, ("onnx", "torch"))
    with pytest.raises(AssertionError, match="needs a reason"):
        blocks("<!-- syntax only: -->\n```python\n```\n")


def test_every_page_of_the_site_is_reached() -> None:
    """A page that the navigation leaves out is found by nobody; one that it names must exist."""
    named = set(re.findall(r":\s*([\w/]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def names_of_the_reference() -> list[str]:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def test_the_reference_names_what_there_is() -> None:
    names = names_of_the_reference()
    assert len(names) == len(set(names)) > 50
    for name in names:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        assert value.__doc__, name
    public = set(importlib.import_module("attfc_cuda").__all__) - {"__version__"}
    assert public <= {name.rpartition(".")[2] for name in names}


def test_documented_arguments_are_those_of_the_signature() -> None:
    """One entry of `Args:` for one parameter, as editors and the site read Google's layout."""
    seen = 0
    for name in names_of_the_reference():
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        doc = inspect.getdoc(value) or ""
        assert not re.search(r"^(Errors|Raises|Returns|Args|Attributes): *\S", doc, re.MULTILINE), name
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", doc, re.MULTILINE)
        if section is None:
            continue
        for line in re.findall(r"^ {4}(?=\S)(.*)", section[1], re.MULTILINE):
            entry = re.match(r"\*{0,2}(\w+)(?: \([^)]*\))?: \S", line)
            assert entry, f"{name}: {line}"
            assert entry[1] in inspect.signature(value).parameters, f"{name}: {line}"
            seen += 1
    assert seen > 100

"""The command line: `attfc train | verify | embed | compare | identify | ...`, each of `COMMANDS`.

Each command is a file here with two names: `Command`, a dataclass of its flags, and `run(command)`, which returns the
exit code. A new one is such a file and a word in `COMMANDS`. The files import neither torch nor the rest of the package
before `run`, so that `--help` is quick; only that of the command which was typed is imported. Flags that several
share are in `_network.py`, the groups of those of `train` in `_train_form.py`.

A mistake of the user's is one line on stderr and exit code 2; `--debug` (or ATTFC_DEBUG=1) shows the traceback instead.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

from attfc_cuda._error import close_match, error
from attfc_cuda._version import __version__

if TYPE_CHECKING:
    from attfc_cuda.train import Objective

COMMANDS = (
    "train", "verify", "embed", "compare", "identify", "demo", "pack", "data", "plan", "export", "import", "info",
    "kernels",
)  # fmt: skip
RENAMED_FLAGS = {"--passes": "--epochs"}
"""Old flags that still work for one release, with a line on stderr."""


def main(argv: Sequence[str] | None = None, objective_type: type[Objective] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The words after `attfc`; None: those of this process.
        objective_type: What `train` trains by, for a script that brings its own loss but wants everything around it.

    Returns:
        0, 2 after an error, 128 + signal after an interrupted training.

    Raises:
        SystemExit: After `--help`, or words that are no command: with exit code 0 or 2.
        Exception: With `--debug`, whatever went wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("ATTFC_DEBUG") == "1"
    arguments = [a for a in arguments if a != "--debug"]
    if arguments == ["--version"]:
        print(f"attfc_cuda {__version__}")
        return 0
    try:
        module, command = parse(arguments)
        options = {"objective_type": objective_type} if objective_type and command_name(module) == "train" else {}
        return module.run(command, **options)
    except KeyboardInterrupt:
        print("attfc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`head`, `less`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if debug:
            raise
        known = isinstance(problem, (ValueError, TypeError, OSError, ArithmeticError, ImportError))
        text = " ".join(str(problem).split()) or type(problem).__name__
        hint = "" if known else f" ({type(problem).__name__}; run again with --debug to see where)"
        print(f"attfc: {text}{hint}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str]) -> tuple[ModuleType, Any]:
    """The module of the command that `arguments` begin with, and its `Command` with their values.

    Raises:
        SystemExit: After `--help` (code 0), or for words that are no command (code 2).
        ValueError: For a file of settings that cannot be read.
    """
    import tyro

    arguments = [_renamed(argument) for argument in arguments]
    if arguments and arguments[0] in COMMANDS:
        module, flags = command_module(arguments[0]), arguments[1:]
        form = command_form(module)
        settings = {"default": module.defaults(flags)} if hasattr(module, "defaults") else {}
        if form is not None:
            settings = {"default": form.to_form(settings["default"])}
        command = tyro.cli(
            module.Command if form is None else type(settings["default"]),
            prog=f"attfc {arguments[0]}", args=flags, config=(tyro.conf.OmitArgPrefixes,), **settings,
        )  # fmt: skip
        command = command if form is None else form.from_form(command)
        return module, command
    if arguments and not arguments[0].startswith("-"):
        raise SystemExit(_no_such_command(arguments[0]))
    modules = {name: command_module(name) for name in COMMANDS}
    commands = [Annotated[module.Command, tyro.conf.subcommand(name)] for name, module in modules.items()]
    tyro.cli(  # type: ignore[call-overload]
        Union[tuple(commands)],  # noqa: UP007 - made at run time
        prog="attfc",
        description="Margin-softmax heads for face recognition. `attfc --version` prints the version; --debug with any "
        "command shows an error's traceback.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    raise SystemExit(2)  # only `--help` and mistakes come here, and tyro ends both


def command_module(name: str) -> ModuleType:
    """The file of a command; a trailing underscore where its name is a word of Python."""
    return importlib.import_module(f"attfc_cuda.cli.{name}_" if keyword.iskeyword(name) else f"attfc_cuda.cli.{name}")


def command_form(module: ModuleType) -> ModuleType | None:
    """How the flags of `train` are grouped, which are too many for one list; None for the others."""
    return importlib.import_module("attfc_cuda.cli._train_form") if command_name(module) == "train" else None


def command_name(module: ModuleType) -> str:
    """The inverse of `command_module`."""
    return module.__name__.rpartition(".")[2].rstrip("_")


def _no_such_command(word: str) -> int:
    """Say so on stderr, with the command that is nearest; exit code 2."""
    rule = f"be one of {', '.join(COMMANDS)}"
    print(f"attfc: {error('attfc', 'command', rule, repr(word), close_match(word, COMMANDS))}", file=sys.stderr)
    return 2


def _renamed(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if flag not in RENAMED_FLAGS:
        return argument
    print(f"attfc: {flag} is now {RENAMED_FLAGS[flag]}; the old name goes with the next release", file=sys.stderr)
    return f"{RENAMED_FLAGS[flag]}{equals}{value}"

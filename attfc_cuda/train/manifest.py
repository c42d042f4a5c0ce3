"""The names of the files that a run has made: the only ones that it may replace or delete."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path

from attfc_cuda._error import error
from attfc_cuda._files import write_text

NAME, FORMAT = "manifest.json", "attfc-run-1"
_changing = threading.Lock()


class Manifest:
    """The list at `<folder>/manifest.json`, of paths relative to the folder.

    A name is added before its file is written, so that a crash leaves no file that nobody may remove.

    Raises:
        ValueError: For a file of that name that is not such a list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._names: set[str] = set()
        if self.path.is_file():
            self._names = self._read()

    def __contains__(self, path: Path) -> bool:
        return path.relative_to(self.folder).as_posix() in self._names

    @property
    def is_gone(self) -> bool:
        """Whether the list, or the folder with it, is not there (any more)."""
        return not self.path.exists()

    def may_write(self, path: Path) -> bool:
        """Whether a run may put a file there: nothing is, or a file of its own."""
        return path in self or not path.exists()

    def paths(self) -> list[Path]:
        """The files, whether they are there or not."""
        return [self.folder / name for name in sorted(self._names)]

    def assume(self, paths: Iterable[Path]) -> None:
        """Add paths without writing it down."""
        self._names |= {path.relative_to(self.folder).as_posix() for path in paths}

    def add(self, paths: Iterable[Path]) -> None:
        """Add paths below the folder, durably."""
        with _changing:
            before = self._as_it_is_now()
            self.assume(paths)
            if self._names != before or not self.path.exists():
                self._write()

    def forget(self, paths: Iterable[Path]) -> None:
        """Take paths off the list, durably."""
        gone = {path.relative_to(self.folder).as_posix() for path in paths}
        with _changing:
            if self._as_it_is_now() & gone:
                self._names -= gone
                self._write()

    def _as_it_is_now(self) -> set[str]:
        """The names, with what others in this process have changed: the writer of checkpoints has a list of its own."""
        if self.path.is_file():
            self._names = self._read()
        return set(self._names)

    def _read(self) -> set[str]:
        rule = f"be a list of format {FORMAT}"
        try:
            plain = json.loads(self.path.read_text(encoding="utf-8"))
            names = plain["files"] if plain["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise error("train", str(self.path), rule, f"{type(cause).__name__}: {cause}") from cause
        parts = [Path(name).parts for name in names] if isinstance(names, list) and _texts(names) else None
        # Nothing outside the folder is ever the run's own.
        if parts is None or any(not part or ".." in part or Path(*part).is_absolute() for part in parts):
            raise error("train", str(self.path), rule, repr(names)[:80])
        return set(names)

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"format": FORMAT, "files": sorted(self._names)}, indent=1) + "\n")


def _texts(names: list[object]) -> bool:
    return all(isinstance(name, str) for name in names)

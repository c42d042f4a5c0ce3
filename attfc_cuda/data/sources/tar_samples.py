"""Samples of a tar shard: which members belong together, which of them is the face, and whose it is."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from attfc_cuda._check import error
from attfc_cuda.data.images import IMAGE_EXTENSIONS
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.folder_index import is_hidden
from attfc_cuda.data.sources.tar_members import Member, walk
from attfc_cuda.data.sources.tar_plain import FEW_HEADERS, MOST_HEADERS, plain_run

LABEL_FIELDS = ("auto", "cls", "json", "folder")
# A label's file holds a number or a small JSON object; a larger one is not read.
_MAX_LABEL_BYTES = 2**16
_DIGITS = re.compile(rb"\s*(\d{1,19})\s*")
_MAX_LINKS = 40
_MOST_APART = 1024
_IMAGE_FIELDS = frozenset(extension[1:] for extension in IMAGE_EXTENSIONS)
_SORT = "labels must lie beside their images: sort the shard, as in tar --sort=name -cf sorted.tar FOLDER"

LeftOut = Callable[[str, str], None]
Damage = Callable[[str, CheckedFile, int, str, Any], None]


class Found(NamedTuple):
    """Images of neighbouring samples: starts and checks as in `Member`, identities that are numbers or folders."""

    starts: list[int]
    checks: list[int]
    identities: list[Any]


def samples(shard: CheckedFile, label_field: str, left_out: LeftOut, damage: Damage) -> Iterator[Found]:
    """The images of a shard in order.

    Args:
        shard: The shard.
        label_field: As for `TarFaces`.
        left_out: Called with the kind and an example of what is not taken.
        damage: Called as `(kind, shard, offset, rule, got)` for what is broken; it may raise.

    Raises:
        ValueError: For a sample with two different labels.
    """
    members, at = _Members(shard, left_out, damage), 0
    headers, apart = FEW_HEADERS, 1  # to look at together; samples to take by themselves where that gave nothing
    while True:
        try:
            run = plain_run(shard, at, label_field, headers)
        except DamagedFile:  # the walk meets it again, and reports it
            run = None
        if run is None:
            headers, apart = FEW_HEADERS, min(2 * apart, _MOST_APART)
        else:
            yield Found(run.starts, run.checks, run.identities)
            headers, apart, at = min(2 * headers, MOST_HEADERS), 1, run.end
            if run.whole:
                continue
        resumed = yield from _apart(members, at, apart, label_field)
        if resumed is None:
            return
        at = resumed


def _apart(members: _Members, at: int, count: int, label_field: str) -> Generator[Found, None, int | None]:
    """So many samples from `at`; returns where the next one begins, None at the end of the shard."""
    current = None
    for member in members.since(at):
        folder, _, file = member.name.rpartition("/")
        stem, dot, field = file.partition(".")
        if is_hidden(member.name) or not stem:
            members.left_out("hidden files and files of tools", f"{member.name} of {members.shard.path}")
            continue
        field = field.lower()
        if current is None or (folder, stem) != current.key or field in current.fields:
            if current is not None:
                yield from current.images()
                count -= 1
                if count == 0:
                    return member.begin
            current = _Sample(members.shard, (folder, stem), label_field, members.left_out, members.damage)
        if dot:
            current.fields[field] = member
    if current is not None:
        yield from current.images()
    return None


class _Sample:
    def __init__(
        self, shard: CheckedFile, key: tuple[str, str], label_field: str, left_out: LeftOut, damage: Damage
    ) -> None:
        self.shard, self.key, self.label_field = shard, key, label_field
        self.left_out, self.damage = left_out, damage
        self.fields: dict = {}

    def images(self) -> Iterator[Found]:
        fields = self.fields
        own = [field for field in fields if field in _IMAGE_FIELDS]
        dotted = [field for field in fields if field not in own and field.rpartition(".")[2] in _IMAGE_FIELDS]
        taken, others = (own[:1], own[1:] + dotted) if own else (dotted, [])
        for field in others:
            self.left_out("further images of a sample", f"{fields[field].name} of {self.shard.path}")
        if not taken:
            if "cls" in fields:
                self.left_out(f"labels without an image ({_SORT})", f"{fields['cls'].name} of {self.shard.path}")
            return
        try:
            identity = self._identity()
        except _BadLabel as cause:
            where = fields[cause.field]
            rule, got = f"hold the label of {where.name}", f"{type(cause.reason).__name__}: {cause.reason}"[:200]
            self.damage("samples whose label cannot be read", self.shard, where.start, rule, got)
            return
        if identity is None:
            rule = f"give an identity to {fields[taken[0]].name}"
            got = f"no .cls, no label in a .json, no folder; {_SORT}"
            self.damage("images without an identity", self.shard, fields[taken[0]].start, rule, got)
            return
        images = [fields[field] for field in taken]
        yield Found([image.start for image in images], [image.check for image in images], [identity] * len(images))

    def _identity(self) -> int | str | None:
        labels = {}
        for field, parse in (("cls", _cls_label), ("json", _json_label)):
            if field in self.fields and self.label_field in ("auto", field):
                member = self.fields[field]
                try:
                    label = parse(self.shard.read(member.start, min(member.size, _MAX_LABEL_BYTES)))
                except (ValueError, RecursionError) as cause:
                    if field == "json" and "cls" in labels:
                        continue  # whatever it holds, it is not needed
                    raise _BadLabel(field, cause) from cause
                if label is not None:
                    labels[field] = label
        if len(set(labels.values())) > 1:
            got = f"{labels['cls']} in {self.fields['cls'].name} and {labels['json']} in {self.fields['json'].name}"
            remedy = 'TarFaces(label_field="cls") or "json" says which one counts'
            rule = "name one label in the .cls and the .json of a sample"
            raise error("TarFaces", "shards", rule, f"{got} of {self.shard.path}", remedy)
        for label in labels.values():
            return label
        folder = posixpath.basename(self.key[0]) if self.label_field in ("auto", "folder") else ""
        return folder or None


class _BadLabel(Exception):
    def __init__(self, field: str, reason: Exception) -> None:
        super().__init__(field)
        self.field, self.reason = field, reason


def _cls_label(content: bytes) -> int:
    match = _DIGITS.fullmatch(content)
    if match is None or int(match[1]) >= 2**62:
        raise ValueError(f"no whole number: {content[:40]!r}")
    return int(match[1])


def _json_label(content: bytes) -> int | None:
    value = json.loads(content)
    if not isinstance(value, dict) or "label" not in value:
        return None
    label = value["label"]
    if isinstance(label, str) and label.isascii() and label.isdecimal() and len(label) <= 19:
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**62:
        raise ValueError(f"no whole number: {str(label)[:40]}")
    return label


# A hostile header makes tarfile raise nearly any type; what the caller raises must not be taken for damage.
_TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError, OSError)


class _Members:
    def __init__(self, shard: CheckedFile, left_out: LeftOut, damage: Damage) -> None:
        self.shard, self.left_out, self.damage = shard, left_out, damage
        self._table: dict[str, Member] | None = None
        self._last = 0

    def since(self, at: int) -> Iterator[Member]:
        """The files of the shard from `at` until the first damage, links as the file that they lead to."""
        shard = self.shard
        try:
            for member in walk(shard, lambda what, name: self.left_out(what, f"{name} of {shard.path}"), at):
                self._last = member.start
                if member.link:
                    self._table = _table(shard) if self._table is None else self._table
                    found = _follow(member, self._table)
                    if found is None:
                        what = "links that lead to no file of their shard"
                        self.left_out(what, f"{member.name} of {shard.path}")
                        continue
                    member = member._replace(start=found.start, size=found.size, check=found.check)
                yield member._replace(name=member.name.removeprefix("./"))
        except _TAR_ERRORS as cause:
            text = " ".join(str(cause).split())[:200]
            rule, got = "be followed by tar members", f"{type(cause).__name__}: {text}"
            self.damage("damaged ends of shards", shard, self._last, rule, got)


def _table(shard: CheckedFile) -> dict[str, Member]:
    """Every member by its name; of two with one name the later one, as unpacking would leave it."""
    table = {}
    try:
        for member in walk(shard):
            table[posixpath.normpath(member.name)] = member
    except _TAR_ERRORS:
        pass  # the walk that follows meets and reports the same damage
    return table


def _follow(member: Member, table: dict[str, Member]) -> Member | None:
    for _ in range(_MAX_LINKS):
        folder = posixpath.dirname(member.name) if member.symbolic else ""
        found = table.get(posixpath.normpath(posixpath.join(folder, member.link)))
        if found is None or not found.link:
            return found
        member = found
    return None

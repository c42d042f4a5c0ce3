"""Every ATTFC_ variable that is read somewhere stands on docs/reference/environment.md, and no other does."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "environment.md"
FOLDERS = ("attfc_cuda", "benchmarks", "csrc", "examples", "tests")
# A whole name in quotes; in C++ only as getenv's argument, where a quoted name may also be a message's.
READ = {
    ".py": re.compile(r"""["'](ATTFC_[A-Z_]+)["']"""),
    ".h": re.compile(r'getenv\("(ATTFC_[A-Z_]+)"\)'),
    ".cpp": re.compile(r'getenv\("(ATTFC_[A-Z_]+)"\)'),
}


def variables_read() -> dict[str, Path]:
    paths = [ROOT / "setup.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return {
        name: path
        for path in paths
        if path.suffix in READ
        for name in READ[path.suffix].findall(path.read_text(encoding="utf-8"))
    }


def test_the_page_lists_the_variables_that_are_read_and_no_other():
    listed = set(re.findall(r"^\| `(ATTFC_[A-Z_]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    read = variables_read()
    assert {"ATTFC_BACKEND", "ATTFC_CPU_CAPABILITY", "ATTFC_FORCE_CUDA", "ATTFC_SEEDS"} <= set(read)
    assert {name: path for name, path in read.items() if name not in listed} == {}
    assert listed - set(read) == set()


def test_the_page_is_in_the_navigation():
    assert "reference/environment.md" in (ROOT / "mkdocs.yml").read_text()

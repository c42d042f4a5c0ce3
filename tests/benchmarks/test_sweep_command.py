"""benchmarks/sweep.py writes its JSON whole, and over another one only when told to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cases  # noqa: E402
import reports  # noqa: E402
import sweep  # noqa: E402


def test_rows_are_written_after_each_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "sweep.json"
    rows = [{"contender": "bare product"}]
    seen = []

    def rows_of(dtype: str, arguments: object) -> list[dict]:
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return [{**row, "dtype": dtype} for row in rows]

    monkeypatch.setattr(sweep, "rows_of", rows_of)
    monkeypatch.setattr(sweep, "print_table", lambda rows: None)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--shape", "small", "--output", str(path)])
    sweep.main()
    assert seen == [0, 1]
    report = reports.read("test", path)
    assert report["schema"] == reports.SWEEP and report["shape"] == vars(cases.SHAPES["small"])
    with pytest.raises(SystemExit):
        sweep.main()
    assert len(json.loads(path.read_text())["rows"]) == 2, "what is there stays"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    sweep.main()

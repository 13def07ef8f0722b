"""Rows of one experiment of `benchmarks.nights`, each kept with what is needed to go on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from editor.method import Method

Row = dict[str, Any]


class Log:
    """Rows of one experiment, and what is needed to go on after each.

    Args:
        out: the folder.
        name: of the experiment and method.
        setup: what the rows depend on; other rows are not gone on from.
    """

    def __init__(self, out: Path, name: str, setup: Row) -> None:
        self.path, self.setup = out / f"{name}.json", setup
        out.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        if self.path.exists():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["setup"] != setup:
                raise SystemExit(f"{self.path} was made with {kept['setup']}: name another --out.")
            self.rows = kept["rows"]

    def resume(self, method: Method) -> None:
        """Bring a method to where the last row left it."""
        if self.rows:
            method.resume(load_file(self._files(len(self.rows))[0]), self.state)

    @property
    def state(self) -> bytes:
        """What the last row's method needs to go on."""
        return self._files(len(self.rows))[1].read_bytes()

    def add(self, row: Row, method: Method) -> None:
        """Keep a row: first what comes after it, then the row, then drop what came before."""
        number = len(self.rows) + 1
        weights, state = self._files(number)
        save_file({name: tensor.contiguous() for name, tensor in method.changed().items()}, weights)
        state.write_bytes(method.state())
        self.keep(row)
        for old in self._files(number - 1):
            old.unlink(missing_ok=True)

    def keep(self, row: Row) -> None:
        """Keep a row that nothing goes on from."""
        self.rows.append(row)
        self.write({"setup": self.setup, "rows": self.rows})

    def write(self, content: Row) -> None:
        """Write the file, whole or not at all."""
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)

    def finish(self, end: Row) -> None:
        """Keep what was measured after the last row."""
        self.write({"setup": self.setup, "rows": self.rows, "end": end})

    @property
    def end(self) -> Row | None:
        """What was measured after the last row, if it is done."""
        kept = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        found: Row | None = kept.get("end")
        return found

    def _files(self, number: int) -> tuple[Path, Path]:
        stem = self.path.with_suffix("")
        return Path(f"{stem}-{number}.safetensors"), Path(f"{stem}-{number}.state")

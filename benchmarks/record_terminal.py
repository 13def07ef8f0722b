"""Record a terminal run for the docs: real commands, two nights of the sample's heads of government.

    python benchmarks/record_terminal.py --models .factsync/models --moments .factsync/moments

Each command runs in a terminal of its own (a pseudo-terminal). What it writes goes, with its times, into
`docs/images/terminal.cast` (`asciinema play docs/images/terminal.cast`), and as it stands at the end, into
the pictures of `SCENES`. Only the scratch folder's name is changed: it becomes `~`.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS, ROWS = 110, 45
PROMPT = "\x1b[1;32m$\x1b[0m "

WIPE = "\r\x1b[2K"
"""How a bar begins its line anew."""

ASKED = '"The head of government of France is"'
SCENES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "terminal-night",
        (
            "factsync kb load night1",
            "factsync sync --limit 20",
            f"factsync ask {ASKED}",
        ),
    ),
    (
        "terminal-change",
        (
            "factsync kb load night2",
            "factsync plan",
            "factsync sync",
            "factsync status",
        ),
    ),
    (
        "terminal-look",
        (
            f"factsync explain {ASKED}",
            "factsync history Q142",
            "factsync diff base live",
            "factsync checkpoint list",
        ),
    ),
    (
        "terminal-back",
        (
            'factsync rollback {first} --reason "a bad night"',
            f"factsync ask {ASKED}",
            "factsync rollback {second}",
            "factsync doctor",
        ),
    ),
)
"""Pictures, and the commands in each; `{first}` and `{second}` are the checkpoints of the two nights."""

# The font that rich's picture asks for lies on somebody's server.
SVG = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


class Screen:
    """What a terminal shows at the end: enough of one for text, colours, and bars that erase themselves."""

    def __init__(self) -> None:
        self._lines, self._row, self._fresh = [""], 0, False

    def write(self, text: str) -> None:
        """Show more."""
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self._fresh = True
            elif part == "\n":
                self._row, self._fresh = self._row + 1, False
                self._lines.extend([""] * (self._row + 1 - len(self._lines)))
            elif part.endswith("K"):
                self._lines[self._row] = ""
            elif part.endswith("A") and part.startswith("\x1b["):
                self._row = max(0, self._row - int(part[2:-1] or 1))
            elif part.endswith("m") or not part.startswith("\x1b"):
                if self._fresh and not part.startswith("\x1b"):
                    self._lines[self._row], self._fresh = "", False
                self._lines[self._row] += part

    def text(self) -> str:
        """All lines, with their colours."""
        return "\n".join(self._lines).rstrip()


def _settled(text: str) -> str:
    """What of a bar's redrawings is seen: those that the next one wipes out before the line ends are not."""
    first, *drawn = text.split(WIPE)
    return WIPE.join([first, *(one for one in drawn[:-1] if "\x1b[1A" in one), *drawn[-1:]])


class Recorder:
    """Runs commands and writes down what their terminal shows."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("FACTSYNC", "PREFECT"))
            },
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
            "FACTSYNC_HOME": str(scratch / ".factsync"),
            "FACTSYNC_RELATIONS": "P6",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        self._began = time.monotonic()
        self.events: list[tuple[float, str, str]] = []

    def show(self, text: str) -> None:
        """Add to the recording."""
        self.events.append((round(time.monotonic() - self._began, 3), "o", text))

    def run(self, command: str) -> str:
        """Type a command, run it, and return what stands on the screen after it."""
        self.show(f"{PROMPT}{command}\r\n")
        screen = Screen()
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        child = subprocess.Popen(
            command,
            shell=True,
            cwd=self._scratch,
            env=self._environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        left = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not read:
                break
            *whole, left = (left + read).rsplit(b"\n", 1) if b"\n" in read else (left + read,)
            for one in whole:
                self._add(one + b"\n", screen)
        self._add(left, screen)
        os.close(ours)
        if child.wait():
            raise SystemExit(f"{command!r} ended with {child.returncode}:\n{screen.text()}")
        return f"{PROMPT}{command}\n{screen.text()}"

    def _add(self, said: bytes, screen: Screen) -> None:
        text = _settled(said.decode().replace(str(self._scratch), "~"))
        self.show(text)
        screen.write(text)

    def checkpoints(self) -> list[str]:
        """Digests of the promoted nights, oldest first; not part of the recording."""
        said = subprocess.run(
            ["factsync", "checkpoint", "list", "--json"],
            env=self._environment,
            cwd=self._scratch,
            check=True,
            capture_output=True,
            text=True,
        )
        return [row["digest"][:12] for row in json.loads(said.stdout) if row["digest"]]


def picture(said: str, path: Path) -> None:
    """Draw a scene."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(said), soft_wrap=True)
    path.write_text(
        console.export_svg(title="factsync", code_format=SVG, unique_id=path.stem), encoding="utf-8"
    )


def main() -> None:
    """Record every scene."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, help="a home's folder of models, to save the conversion")
    parser.add_argument(
        "--moments", type=Path, help="a home's folder of second moments, to save measuring them"
    )
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="factsync-") as folder:
        home = Path(folder) / ".factsync"
        home.mkdir()
        for name in ("models", "moments"):
            if getattr(given, name):
                shutil.copytree(getattr(given, name), home / name)
        recorder = Recorder(Path(folder))
        for name, commands in SCENES:
            said = []
            for command in commands:
                known = (
                    dict(zip(("first", "second"), recorder.checkpoints(), strict=False))
                    if "{" in command
                    else {}
                )
                said.append(recorder.run(command.format(**known)))
                print(said[-1], flush=True)
            picture("\n\n".join(said), given.out / f"{name}.svg")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": 1.5, "title": "factsync"}
    lines = [json.dumps(one, ensure_ascii=False) for one in (header, *recorder.events)]
    (given.out / "terminal.cast").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

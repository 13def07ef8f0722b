"""Text files that a person gives, a passage a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


def read_passages(name: str, path: Path, *, words: int = 1) -> list[str]:
    """Read the passages of a file, without white space around them.

    Args:
        name: what names the file: a variable, or an option of the command line.
        path: the file.
        words: lines of fewer words are passed over.

    Raises:
        SettingsError: it cannot be read, is no UTF-8 text, or holds no passage.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read ({error.strerror}): name a text file.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: {path} is no UTF-8 text ({error}): save it as UTF-8.") from error
    found = [line.strip() for line in text.splitlines() if len(line.split()) >= words]
    if not found:
        least = f" of at least {words} words" if words > 1 else ""
        raise SettingsError(f"{name}: {path} holds no passage: write one{least} a line.")
    return found

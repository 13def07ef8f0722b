"""Our four import names are short, and short names collide: PyPI's `python-editor`, say, is `editor` too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flows.errors import ForeignPackageError

PACKAGES = ("flows", "kb", "editor", "storage")


def check_import_names() -> None:
    """Fail when kb, editor, storage or flows would resolve to someone else's module.

    Raises:
        ForeignPackageError: names the file that shadows ours.
    """
    root = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != root:
            raise ForeignPackageError(
                f"`import {name}` finds {origin}, which is not factsync's. Uninstall the one that owns it, "
                "or run factsync in a virtual environment of its own (make install)."
            )

"""The command line: `factsync`. One module a family of commands; nothing here decides anything."""

from __future__ import annotations

from flows.cli.main import app, main

__all__ = ["app", "main"]

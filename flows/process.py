"""What this process tells torch's thread pool before it edits: it expects a machine of its own."""

from __future__ import annotations

import os

THREADS = {"GOMP_SPINCOUNT": "10000"}
"""For torch's thread pool, before torch is imported. Waiting threads that spin for long make a shared machine
many times slower, threads that sleep at once make a quiet one half as fast; this is some ten microseconds."""


def tune_threads() -> None:
    """Put `THREADS` into this process, where the user has not set it himself."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)

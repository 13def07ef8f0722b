"""Manners towards a shared service: query-time budget, backoff, and remembering a ban."""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOG = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the transport sees it, so that tests need not wait.

    Attributes:
        now: wall clock, with a zone.
        monotonic: seconds that only grow.
        sleep: waits that many seconds.
        jitter: a uniform number in [0, 1).
    """

    now: Callable[[], datetime] = _now
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random


class QueryBudget:
    """A bucket of query seconds: holds two minutes' worth, refills steadily, may owe one query."""

    def __init__(self, seconds_per_minute: float | None, clock: Clock) -> None:
        self._rate = None if seconds_per_minute is None else seconds_per_minute / 60
        self._clock = clock
        self._size = 0.0 if seconds_per_minute is None else 2 * seconds_per_minute
        self._level = self._size
        self._seen = clock.monotonic()
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Seconds until another query may start."""
        if self._rate is None:
            return 0.0
        with self._lock:
            self._refill()
            return max(0.0, -self._level / self._rate)

    def spend(self, seconds: float) -> None:
        """Charge a finished query."""
        if self._rate is None:
            return
        with self._lock:
            self._refill()
            self._level -= seconds

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._level = min(self._size, self._level + (now - self._seen) * (self._rate or 0))
        self._seen = now


def backoff_s(attempt: int, clock: Clock, *, base_s: float = 1.0, cap_s: float = 60.0) -> float:
    """Full-jitter exponential backoff: uniform in [0, min(cap, base * 2^attempt)).

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return clock.jitter() * min(cap_s, base_s * 2.0**attempt)


class BanMemory(Protocol):
    """Remembers until when an endpoint refuses us."""

    def until(self, url: str) -> datetime | None:
        """End of the ban, or None."""
        ...

    def remember(self, url: str, until: datetime) -> None:
        """Keep a ban's end."""
        ...


class VolatileBans:
    """Remembers bans as long as the process lives."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def until(self, url: str) -> datetime | None:
        """End of the ban, or None."""
        return self._until.get(url)

    def remember(self, url: str, until: datetime) -> None:
        """Keep a ban's end."""
        self._until[url] = until


class BanFile:
    """Remembers bans in a small JSON file, so that the next run does not send anything either."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def until(self, url: str) -> datetime | None:
        """End of the ban, or None."""
        text = self._read().get(url)
        if text is None:
            return None
        try:
            until = datetime.fromisoformat(text)
        except ValueError:
            return None
        return until if until.tzinfo else until.replace(tzinfo=UTC)

    def remember(self, url: str, until: datetime) -> None:
        """Keep a ban's end: written beside the file, then renamed over it."""
        with self._lock:
            bans = self._read() | {url: until.isoformat()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(bans, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)  # noqa: PTH105  (the temporary name is a string)

    def _read(self) -> dict[str, str]:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _LOG.warning("The file of bans %s cannot be read (%s); taken as empty.", self._path, error)
            return {}
        if not isinstance(raw, dict):
            return {}
        return {str(url): str(until) for url, until in raw.items()}

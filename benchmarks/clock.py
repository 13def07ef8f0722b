"""Two clocks in one: what a user waits, and what holds on a shared machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds by the clock, and CPU seconds of this process."""

    s: float = field(default_factory=time.monotonic)
    cpu_s: float = field(default_factory=time.process_time)

    def since(self) -> Clock:
        """Return what has passed."""
        return Clock(time.monotonic() - self.s, time.process_time() - self.cpu_s)

    def __truediv__(self, parts: float) -> Clock:
        return Clock(self.s / parts, self.cpu_s / parts)

    def shown(self) -> dict[str, float]:
        """Return both, rounded."""
        return {"s": round(self.s, 4), "cpu_s": round(self.cpu_s, 4)}

"""Real processes that run a step of a small scenario and die at a named point.

A child is forked, opens its own ledger, and is ended with SIGKILL by itself at the point, or by its parent
at a random time. No handler, no `finally`, no commit runs after that.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from storage.checkpoints import CheckpointFiles
from storage.database import reading
from storage.errors import LockHeldError
from storage.ledger import Ledger
from storage.recovery import known_digests
from tests.unit.storage import steps

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

STEPS = (1, 2, 3, 4, 5)
"""1 and 2: promoted nights. 3: a rejected night. 4: a rollback to night 1. 5: a promoted night."""

Point = tuple[str, int]
"""A point's name, and which time it is passed."""


@dataclass(frozen=True)
class Place:
    """A ledger and its checkpoints."""

    url: str
    folder: Path


def world(step: int) -> steps.World:
    """What stands in the knowledge base when a step runs."""
    made = steps.World()
    for number in range(1, 6):
        made.set(f"Q{number}", "P6", f"Q{100 + number}")
    made.set("Q1", "P35", "Q200")
    if step >= 2:
        made.set("Q1", "P6", "Q301")
        made.set("Q2", "P6", None)
        made.set("Q6", "P6", "Q106")
    if step >= 3:
        made.set("Q3", "P6", "Q303")
    if step >= 5:
        made.set("Q1", "P6", "Q101")
        made.set("Q2", "P6", "Q102")
    return made


def run_step(place: Place, step: int, on_point: Callable[[str], None]) -> None:
    """Run one step, as a process of its own would."""
    files = CheckpointFiles(place.folder, on_point=on_point)
    at = steps.night(step)
    with Ledger.open(place.url, clock=lambda: at, on_point=on_point) as ledger:
        if step == 4:
            with ledger.writer(steps.MODEL, holder="a person") as lease:
                ledger.recover(lease, files)
                first = ledger.lineage(lease.model)[0]
                ledger.rollback(lease, first.id, reason="looks wrong")
                ledger.decide(lease, 0, "blocked", by="a person")
                ledger.prune(lease, before=steps.night(3))
        else:
            verdict = "reject" if step == 3 else "promote"
            steps.sync(ledger, files, world(step), step, verdict=verdict)


def in_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> int:
    """Run something in a forked process.

    Returns:
        Its wait status: 0, or -9 if it was killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def record_points(place: Place, step: int, log: Path) -> list[Point]:
    """Run a step to its end in a child; return the points it passed."""

    def work() -> None:
        with log.open("w") as out:
            run_step(place, step, lambda name: print(name, file=out, flush=True))

    assert in_child(work) == 0
    seen: Counter[str] = Counter()
    points = []
    for name in log.read_text().split():
        seen[name] += 1
        points.append((name, seen[name]))
    return points


def killed_at(place: Place, step: int, point: Point) -> None:
    """Run a step in a child that dies at a point."""

    def work() -> None:
        seen: Counter[str] = Counter()

        def die(name: str) -> None:
            seen[name] += 1
            if (name, seen[name]) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        run_step(place, step, die)

    assert in_child(work) == -signal.SIGKILL, f"step {step} never passed {point}"


def killed_at_random(place: Place, step: int, chance: random.Random, longest_s: float) -> bool:
    """Run a step in a child that is killed at a random time; True if it was still at work."""
    return (
        in_child(lambda: run_step(place, step, lambda _: None), kill_after_s=chance.uniform(0, longest_s))
        != 0
    )


def finish(place: Place, step: int) -> float:
    """Run a step again, waiting for a dead holder's lock; return for how many seconds it stayed taken."""
    start = time.monotonic()
    while True:
        waited_s = time.monotonic() - start
        try:
            run_step(place, step, lambda _: None)
        except LockHeldError:
            if waited_s > 5:
                raise
            time.sleep(0.01)
        else:
            return waited_s


OUTCOME = {
    "live": "SELECT subject, property, slot, value, target, operation, checkpoint, live_since"
    " FROM live_facts",
    "lineage": "SELECT position, checkpoint, parent, state, edits, live_facts, is_head, size_bytes,"
    " decided_at FROM checkpoint_lineage WHERE state NOT IN ('rejected', 'abandoned')",
    "history": "SELECT subject, property, value, held_from, held_to, checkpoint FROM fact_history",
    "edits": "SELECT subject, property, operation, new_value, old_value, status, p_new_after, checkpoint"
    " FROM edit_history WHERE checkpoint_state NOT IN ('rejected', 'abandoned')",
    "provenance": "SELECT checkpoint, subject, property, value, statement_id, revision, statement_value"
    " FROM provenance WHERE checkpoint_state NOT IN ('rejected', 'abandoned')",
    "recall": "SELECT checkpoint, property, probe, checks, passed FROM recall_by_relation"
    " WHERE checkpoint_state NOT IN ('rejected', 'abandoned')",
    "held back": "SELECT subject, property, value, sightings, resolution FROM quarantine",
    "statements": "SELECT guid, subject, property, value, revision, seen_from, seen_to, ending"
    " FROM statement",
    "entities": "SELECT id, label, revision, tracked FROM entity",
    "cursor": "SELECT source, read_to FROM source_cursor",
    "queue": "SELECT f.subject, f.property, r.op, r.value, r.state, r.idem_key"
    " FROM edit_request r JOIN fact f ON f.id = r.fact_id",
    "changes": "SELECT f.subject, f.property, c.kind, c.new_value"
    " FROM change c JOIN fact f ON f.id = c.fact_id",
    "to review": "SELECT subject, property FROM review",
    "open": "SELECT state FROM checkpoint WHERE state IN ('building', 'candidate')",
    "running": "SELECT state FROM sync_run WHERE state = 'running'",
}


def outcome(place: Place) -> dict[str, list[str]]:
    """Say all that must not depend on crashes: everything but keys, which an abandoned checkpoint uses up."""
    with Ledger.open(place.url) as ledger:
        with reading(ledger.engine) as connection:
            found = {
                name: sorted(repr(tuple(row)) for row in connection.execute(text(sql)))
                for name, sql in OUTCOME.items()
            }
        files = CheckpointFiles(place.folder)
        with ledger.writer(steps.MODEL, holder="a check") as lease:
            ledger.recover(lease, files)
        with reading(ledger.engine) as connection:
            known = known_digests(connection)
    found["files"] = files.digests()
    found["orphans"] = files.orphans(known)
    for digest in files.digests():
        files.open(digest)
    return found


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder of checkpoints."""
    shutil.copytree(source, target)
    return target

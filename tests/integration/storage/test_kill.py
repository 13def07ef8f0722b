"""Killed at every named point and run again, a sync ends where one that was never killed ends."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from storage import crash
from tests.integration.storage import killing
from tests.integration.storage.killing import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.storage.databases import Postgres


class Snapshots:
    """The scenario's states before each step, and the outcome of a run that was never killed."""

    def __init__(self, kind: str, folder: Path, server: Postgres | None) -> None:
        self._kind = kind
        self._folder = folder
        self._server = server
        self._numbers = itertools.count()
        self.before: dict[int, Place] = {}
        self.points: dict[int, list[killing.Point]] = {}
        place = self._empty()
        for step in killing.STEPS:
            self.before[step] = self.copy(place)
            self.points[step] = killing.record_points(place, step, folder / "points.txt")
        self.outcome = killing.outcome(place)

    def _empty(self) -> Place:
        number = next(self._numbers)
        folder = self._folder / f"checkpoints{number}"
        folder.mkdir()
        if self._server is None:
            return Place(f"sqlite:///{self._folder / f'ledger{number}.db'}", folder)
        return Place(self._server.make(), folder)

    def copy(self, place: Place) -> Place:
        """Copy a ledger at rest and its checkpoints."""
        number = next(self._numbers)
        folder = killing.copy_folder(place.folder, self._folder / f"checkpoints{number}")
        if self._server is None:
            target = self._folder / f"ledger{number}.db"
            source = Path(make_url(place.url).database or "")
            if source.exists():
                shutil.copy(source, target)
            return Place(f"sqlite:///{target}", folder)
        return Place(self._server.copy(place.url), folder)

    def drop(self, place: Place) -> None:
        """Remove a copy."""
        shutil.rmtree(place.folder)
        if self._server is not None:
            self._server.drop(place.url)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def snapshots(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Snapshots]:
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    return Snapshots(request.param, tmp_path_factory.mktemp("kill"), server)


def survive(snapshots: Snapshots, step: int, kill: Callable[[Place], Any]) -> None:
    place = snapshots.copy(snapshots.before[step])
    kill(place)
    lock_free_s = killing.finish(place, step)
    assert lock_free_s < 1
    for later in killing.STEPS[step:]:
        killing.run_step(place, later, lambda _: None)
    assert killing.outcome(place) == snapshots.outcome
    snapshots.drop(place)


@pytest.mark.parametrize(
    "name",
    [
        "ingest.inserted",
        "record_plan.requests",
        "begin_checkpoint.after_commit",
        "files.half_written",
        "files.renamed",
        "record_candidate.after_commit",
        "promote.head",
        "promote.after_commit",
    ],
)
def test_a_kill_at_a_telling_point_changes_nothing(snapshots: Snapshots, name: str) -> None:
    survive(snapshots, 2, lambda place: killing.killed_at(place, 2, (name, 1)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("step", killing.STEPS)
def test_a_kill_at_every_point_changes_nothing(snapshots: Snapshots, step: int) -> None:
    for point in snapshots.points[step]:
        survive(snapshots, step, lambda place, point=point: killing.killed_at(place, step, point))


@pytest.mark.parametrize("first", [("files.renamed", 1), ("record_candidate.after_commit", 1)])
@pytest.mark.parametrize(
    "second",
    [
        "recover.settled",
        "recover.before_commit",
        "recover.after_commit",
        "recover.orphans",
        "writer.after_commit",
    ],
)
def test_a_kill_during_recovery_changes_nothing(
    snapshots: Snapshots, first: killing.Point, second: str
) -> None:
    def kill_twice(place: Place) -> None:
        killing.killed_at(place, 2, first)
        killing.killed_at(place, 2, (second, 1))

    survive(snapshots, 2, kill_twice)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_random_times_changes_nothing(snapshots: Snapshots) -> None:
    chance = random.Random(11)
    killed = 0
    for number in range(60):
        step = (2, 3, 5)[number % 3]

        def kill(place: Place, step: int = step) -> None:
            nonlocal killed
            killed += killing.killed_at_random(place, step, chance, 0.25)

        survive(snapshots, step, kill)
    assert killed >= 20


def test_every_named_point_is_passed(snapshots: Snapshots) -> None:
    """A point that no scenario passes would be a point that no test kills at."""
    passed = {name for points in snapshots.points.values() for name, _ in points}
    assert set(crash.POINTS) <= passed
    assert sum(len(points) for points in snapshots.points.values()) >= 60

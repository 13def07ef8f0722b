"""A PostgreSQL disk that is really full: a small file system that a ballast file fills up."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from storage import doctor
from storage.errors import DiskFullError
from storage.ledger import Ledger
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.checkpoints import CheckpointFiles
    from tests.unit.storage.databases import Postgres

SIZE_MB = 64
STATEMENTS = 1_500


def run(postgres: Postgres, *statements: str) -> str | None:
    """Run statements outside a transaction; give the first value of the last one."""
    engine = create_engine(postgres.admin, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            found = [connection.execute(text(sql)) for sql in statements]
            return str(found[-1].scalar()) if found[-1].returns_rows else None
    finally:
        engine.dispose()


@pytest.fixture
def disk(postgres: Postgres) -> Iterator[Path]:
    """A file system of a few megabytes that belongs to the server."""
    data = Path(run(postgres, "SHOW data_directory") or "")
    if not data.is_dir():
        pytest.skip("the server's files are not on this machine")
    folder = Path(tempfile.mkdtemp(prefix="fsdisk"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("mounting a small file system needs more rights than this user has")
    try:
        folder.chmod(0o700)
        os.chown(folder, data.stat().st_uid, data.stat().st_gid)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def url(postgres: Postgres, disk: Path) -> Iterator[str]:
    """A ledger on that file system."""
    place = disk / "space"
    place.mkdir()
    os.chown(place, disk.stat().st_uid, disk.stat().st_gid)
    made = postgres.make()
    name = make_url(made).database
    run(
        postgres,
        f"CREATE TABLESPACE small LOCATION '{place}'",
        f"ALTER DATABASE {name} SET TABLESPACE small",
    )
    try:
        yield made
    finally:
        postgres.drop(made)
        run(postgres, "CHECKPOINT", "DROP TABLESPACE small")


def leave(disk: Path, room: int) -> Path:
    """Fill the disk but for some bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(b"\0" * (free - room))
    return ballast


@pytest.mark.slow
def test_a_full_disk_refuses_a_step_whole_and_room_mends_it(
    postgres: Postgres, disk: Path, url: str, files: CheckpointFiles
) -> None:
    """At several fillings: in the pull's staging, in the statements, in the plan; nothing half-done."""
    world = steps.World()
    for number in range(1, 6):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    with Ledger.open(url) as ledger:
        steps.sync(ledger, files, world, 1)
        before = dict(world.values)
        for number in range(1, STATEMENTS):
            world.set(f"Q{number}", "P6", f"Q{20_000 + number}")
        refused = 0
        for room in (0, 300_000, 1_000_000):
            ballast = leave(disk, room)
            try:
                with pytest.raises(DiskFullError) as refusal:
                    steps.sync(ledger, files, world, 2)
                assert "room" in str(refusal.value)
                refused += 1
            finally:
                ballast.unlink()
            assert steps.held(ledger) == before
            assert ledger.cursor(steps.SOURCE) == steps.night(1)
        assert refused == 3
        steps.sync(ledger, files, world, 2)
        assert steps.held(ledger) == world.values
        model = ledger.model(steps.MODEL)
        assert doctor.examine(ledger, model, files, now=steps.night(3)).healthy

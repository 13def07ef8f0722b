"""What the doctor finds, what it repairs, and what it leaves alone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from storage import doctor
from storage.database import writing
from storage.errors import CorruptCheckpointError
from tests.unit.storage import steps

if TYPE_CHECKING:
    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger


@pytest.fixture
def synced(ledger: Ledger, files: CheckpointFiles) -> Ledger:
    world = steps.World()
    for number in range(1, 5):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    steps.sync(ledger, files, world, 1)
    world.set("Q1", "P6", "Q999")
    steps.sync(ledger, files, world, 2)
    return ledger


def found(ledger: Ledger, files: CheckpointFiles) -> dict[str, str]:
    report = doctor.examine(ledger, ledger.model(steps.MODEL), files)
    return {finding.check: finding.message for finding in report.findings}


def damage(ledger: Ledger, sql: str) -> None:
    with writing(ledger.engine) as connection:
        connection.execute(text(sql))


def test_a_sound_ledger_is_healthy(synced: Ledger, files: CheckpointFiles) -> None:
    report = doctor.examine(synced, synced.model(steps.MODEL), files)
    assert report.healthy
    looked_at = dict(report.checks)
    assert (looked_at["digests"], looked_at["lineage"], looked_at["live facts"]) == (2, 2, 4)


def test_every_flipped_byte_is_found_before_the_file_is_used(synced: Ledger, files: CheckpointFiles) -> None:
    digest = files.digests()[0]
    for path in sorted(files.path(digest).iterdir()):
        sound = path.read_bytes()
        for place in (0, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            assert digest[:12] in found(synced, files)["digests"]
            with pytest.raises(CorruptCheckpointError):
                files.open(digest)
        path.write_bytes(sound[:-1])
        assert "digests" in found(synced, files)
        path.unlink()
        assert "digests" in found(synced, files)
        path.write_bytes(sound)
    assert found(synced, files) == {}


def test_a_missing_checkpoint_is_found(synced: Ledger, files: CheckpointFiles) -> None:
    files.delete(files.digests()[0])
    assert "missing" in found(synced, files)["digests"]


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        ("UPDATE checkpoint SET state = 'rolled_back' WHERE state = 'superseded'", "lineage"),
        ("UPDATE model SET head_checkpoint_id = (SELECT min(id) FROM checkpoint)", "lineage"),
        ("DELETE FROM recall_check", "live facts"),
        ("UPDATE holding SET held_to = held_from WHERE id = (SELECT max(id) FROM holding)", "holdings"),
        ("DELETE FROM subject_state", "states"),
        ("UPDATE source_cursor SET read_to = '9999-01-01T00:00:00.000000Z', lag_at = NULL", "cursors"),
        ("UPDATE edit SET status = 'dropped'", "queue"),
    ],
)
def test_what_only_a_person_can_settle_is_reported_and_left(
    synced: Ledger, files: CheckpointFiles, sql: str, check: str
) -> None:
    if check == "live facts":
        damage(synced, "UPDATE edit SET success = NULL")
    damage(synced, sql)
    assert check in found(synced, files)
    with synced.writer(steps.MODEL, holder="a doctor") as lease:
        doctor.repair(synced, lease, files)
    assert check in found(synced, files)


def test_a_run_at_work_and_a_rejected_night_leave_nothing_to_repair(
    synced: Ledger, files: CheckpointFiles
) -> None:
    world = steps.World()
    world.set("Q1", "P6", "Q500")
    steps.sync(synced, files, world, 3, verdict="reject")
    assert found(synced, files) == {}
    with synced.writer(steps.MODEL, holder="a run") as lease:
        synced.recover(lease, files)
        run = synced.begin_run(lease, "sync", reference_time=steps.night(4))
        synced.begin_checkpoint(lease, run, [], algorithm="memit", settings={})
        (files.root / ".tmp-1-abc").mkdir()
        files.put({"delta.safetensors": b"of this run"}, {"parent": None})
        assert found(synced, files) == {}


def test_all_that_is_wrong_is_counted(synced: Ledger, files: CheckpointFiles) -> None:
    world = steps.World()
    for number in range(11, 31):
        world.set(f"Q{number}", "P6", f"Q{200 + number}")
    steps.sync(synced, files, world, 3)
    damage(synced, "UPDATE edit SET status = 'dropped'")
    assert "and 20 more count as applied" in found(synced, files)["queue"]


def test_safe_repairs_are_made_and_told(synced: Ledger, files: CheckpointFiles) -> None:
    stray = files.put({"delta.safetensors": b"nobody's"}, {"parent": None})
    (files.root / ".tmp-1-abc").mkdir()
    damage(synced, "UPDATE checkpoint SET live_facts = 77 WHERE state = 'promoted'")
    damage(synced, "DROP VIEW provenance")
    assert set(found(synced, files)) == {"views", "orphans", "live facts"}
    with synced.writer(steps.MODEL, holder="a run that dies") as lease:
        run = synced.begin_run(lease, "sync", reference_time=steps.night(3))
        synced.begin_checkpoint(lease, run, [], algorithm="memit", settings={})
    with synced.writer(steps.MODEL, holder="a doctor") as lease:
        # Whose the folders are is only known once the checkpoint that is being built is closed.
        assert set(found(synced, files)) == {"views", "live facts", "unfinished"}
        told = doctor.repair(synced, lease, files)
    assert len(told) == 5
    assert found(synced, files) == {}
    assert stray not in files.digests()


def test_a_cursor_in_the_future_is_found_whatever_the_clock_says(
    synced: Ledger, files: CheckpointFiles
) -> None:
    model = synced.model(steps.MODEL)
    report = doctor.examine(synced, model, files, now=steps.night(2) - timedelta(days=1))
    assert [finding.check for finding in report.findings] == ["cursors"]

"""Whose checkpoints a folder holds: no run against another ledger touches them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from storage import doctor, runs
from storage.checkpoints import OWNER, CheckpointFiles
from storage.database import writing
from storage.errors import DiskFullError, ForeignCheckpointsError, LedgerError, StaleLeaseError
from storage.ledger import Ledger
from tests.integration.storage.killing import in_child
from tests.integration.storage.test_faults import limit_files
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world() -> steps.World:
    world = steps.World()
    world.set("Q1", "P6", "Q10")
    return world


@pytest.fixture
def synced(ledger: Ledger, files: CheckpointFiles, world: steps.World) -> Ledger:
    steps.sync(ledger, files, world, 1)
    return ledger


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Ledger]:
    """A fresh ledger, as a mistyped address makes one."""
    with Ledger.open(str(tmp_path / "mistyped.db")) as opened:
        opened.ensure_model(steps.MODEL, "local", steps.BASE)
        yield opened


def recover(ledger: Ledger, files: CheckpointFiles) -> None:
    with ledger.writer(steps.MODEL, holder="test") as lease:
        ledger.recover(lease, files)


def test_a_run_against_the_wrong_ledger_deletes_nothing(
    synced: Ledger, other: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    before = files.digests()
    with pytest.raises(ForeignCheckpointsError) as refusal:
        recover(other, files)
    assert files.digests() == before
    assert refusal.value.owner == files.owner
    for name in (refusal.value.owner, refusal.value.ledger, str(files.root)):
        assert str(name) in str(refusal.value)
    world.set("Q1", "P6", "Q11")
    steps.sync(synced, files, world, 2)
    assert steps.held(synced) == world.values


def test_the_doctor_names_a_foreign_folder_and_repairs_nothing(
    synced: Ledger, other: Ledger, files: CheckpointFiles
) -> None:
    before = files.digests()
    (finding,) = doctor.examine(other, other.model(steps.MODEL), files).findings
    assert (finding.check, finding.repairable) == ("orphans", False)
    assert str(files.owner) in finding.message
    with (
        other.writer(steps.MODEL, holder="a doctor") as lease,
        pytest.raises(ForeignCheckpointsError),
    ):
        doctor.repair(other, lease, files)
    assert files.digests() == before
    assert doctor.examine(synced, synced.model(steps.MODEL), files).healthy


def test_a_folder_from_before_folders_had_owners_is_its_ledgers(
    synced: Ledger, other: Ledger, files: CheckpointFiles
) -> None:
    owner = files.owner
    (files.root / OWNER).unlink()
    with pytest.raises(ForeignCheckpointsError):
        recover(other, files)
    assert files.owner is None
    assert doctor.examine(synced, synced.model(steps.MODEL), files).healthy
    recover(synced, files)
    assert files.owner == owner


def test_an_empty_folder_is_the_first_ledgers(ledger: Ledger, other: Ledger, files: CheckpointFiles) -> None:
    assert files.owner is None
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    recover(ledger, files)
    with pytest.raises(ForeignCheckpointsError):
        recover(other, files)


def test_the_models_of_a_ledger_share_its_folder(synced: Ledger, files: CheckpointFiles) -> None:
    before = files.digests()
    synced.ensure_model("second", "local", steps.BASE)
    with synced.writer("second", holder="test") as lease:
        synced.recover(lease, files)
    assert files.digests() == before


def test_a_restored_ledger_is_the_same_ledger(
    tmp_path: Path, files: CheckpointFiles, world: steps.World
) -> None:
    with Ledger.open(str(tmp_path / "ledger.db")) as ledger:
        steps.sync(ledger, files, world, 1)
        ledger.archive(tmp_path / "copy.db")
    with Ledger.open(str(tmp_path / "copy.db")) as restored:
        recover(restored, files)
        assert doctor.examine(restored, restored.model(steps.MODEL), files).healthy


@pytest.mark.parametrize("point", ["files.half_written", "recover.settled", "recover.before_commit"])
def test_a_crash_while_a_folder_is_taken_leaves_it_whole_or_nobodys(
    ledger_url: str, tmp_path: Path, point: str
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with Ledger.open(ledger_url, on_point=die) as ledger:
        ledger.ensure_model(steps.MODEL, "local", steps.BASE)
        with pytest.raises(KeyboardInterrupt):
            recover(ledger, CheckpointFiles(tmp_path / "checkpoints", on_point=die))
    files = CheckpointFiles(tmp_path / "checkpoints")
    assert (files.owner is None) == (point == "files.half_written")
    with Ledger.open(ledger_url) as ledger:
        recover(ledger, files)
    assert [entry.name for entry in files.root.iterdir()] == [OWNER]


def test_a_full_disk_leaves_a_folder_nobodys(ledger: Ledger, files: CheckpointFiles) -> None:
    def take() -> None:
        limit_files(10)
        try:
            files.give_to("f" * 32)
        except DiskFullError:
            return
        raise LedgerError

    assert in_child(take) == 0
    assert list(files.root.iterdir()) == []


def test_a_writer_that_was_overtaken_in_its_sleep_deletes_nothing(tmp_path: Path) -> None:
    """It settled, slept, and another took the model and put a checkpoint in place."""
    url, files = f"sqlite:///{tmp_path / 'ledger.db'}", CheckpointFiles(tmp_path / "checkpoints")
    put: list[str] = []

    def overtake(point: str) -> None:
        if point != "recover.after_commit" or put:
            return
        with Ledger.open(url) as newer:
            with writing(newer.engine) as connection:
                lease = runs.take(connection, newer.model(steps.MODEL), "newer", datetime.now(UTC))
            run = newer.begin_run(lease, "sync", reference_time=steps.START)
            newer.begin_checkpoint(lease, run, [], algorithm="memit", settings={}, from_base=True)
            put.append(files.put({"delta.safetensors": b"x"}, {"parent": None}))

    with Ledger.open(url, on_point=overtake) as older:
        older.ensure_model(steps.MODEL, "local", steps.BASE)
        with older.writer(steps.MODEL, holder="older") as lease, pytest.raises(StaleLeaseError):
            older.recover(lease, files)
    assert files.intact(put[0])

"""What goes when a ledger is pruned, what stays, and the copy that is kept."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect

from storage import doctor
from storage.database import reading
from storage.errors import DiskFullError, LedgerUrlError
from storage.ledger import Ledger
from storage.retention import Pruned
from storage.schema.checkpoints import RecallCheck
from storage.schema.planned import Change
from storage.schema.pulled import Statement
from tests.integration.storage.killing import in_child
from tests.integration.storage.test_faults import limit_files
from tests.unit.storage import steps

if TYPE_CHECKING:
    from storage.checkpoints import CheckpointFiles

LEDGER_MD = Path(__file__).parents[3] / "docs" / "ledger.md"
KEPT = (
    "SELECT * FROM live_facts ORDER BY edit_id",
    "SELECT * FROM fact_history ORDER BY edit_id",
    "SELECT * FROM edit_history ORDER BY edit_id",
    "SELECT * FROM checkpoint_lineage ORDER BY checkpoint_id",
    "SELECT * FROM recall_by_relation ORDER BY checkpoint_id, property, probe",
    "SELECT * FROM provenance ORDER BY edit_id, statement_id",
    "SELECT * FROM sync_runs ORDER BY run_id",
    "SELECT * FROM quarantine ORDER BY quarantine_id",
)


@pytest.fixture
def old(ledger_url: str, files: CheckpointFiles) -> Ledger:
    """Four nights, the world's statements changing; on the third only one that no edit ever rests on."""
    clock = {"now": steps.night(1)}
    ledger = Ledger.open(ledger_url, clock=lambda: clock["now"])
    world = steps.World()
    for number in range(1, 5):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    for night, value in enumerate(("Q101", "Q201", "Q301", "Q401"), start=1):
        clock["now"] = steps.night(night)
        world.set("Q1", "P6", value)
        steps.sync(ledger, files, world, night, verdict="reject" if night == 3 else "promote")
    return ledger


def everything(ledger: Ledger) -> list[object]:
    return [ledger.query(sql).rows for sql in KEPT]


def test_pruning_keeps_the_audit_trail_and_the_answers(old: Ledger, files: CheckpointFiles) -> None:
    before = everything(old)
    with old.writer(steps.MODEL, holder="pruning") as lease:
        old.recover(lease, files)
        horizon = steps.night(4) + timedelta(hours=1)
        would = old.prune(lease, before=horizon, dry_run=True)
        assert would.checks > 0
        assert everything(old)[:5] == before[:5]
        assert old.prune(lease, before=horizon) == would
        assert old.prune(lease, before=horizon) == Pruned(0, 0, 0)
    assert everything(old) == before
    assert steps.held(old)["Q1", "P6"] == "Q401"
    assert doctor.examine(old, old.model(steps.MODEL), files, now=steps.night(5)).healthy
    first = old.lineage(old.model(steps.MODEL))[0]
    with old.writer(steps.MODEL, holder="a person") as lease:
        old.rollback(lease, first.id, reason="back")
    assert steps.held(old)["Q1", "P6"] == "Q101"
    assert doctor.examine(old, old.model(steps.MODEL), files, now=steps.night(5)).healthy
    old.close()


def test_only_what_is_old_and_backs_nothing_goes(old: Ledger, files: CheckpointFiles) -> None:
    world = steps.World()
    with old.writer(steps.MODEL, holder="a test") as lease:
        run = old.begin_run(lease, "sync", reference_time=steps.night(5))
        world.set("Q77", "P6", "Q1")
        steps.ingest(old, lease, run, world, 5)
        world.set("Q77", "P6", "Q2")
        steps.ingest(old, lease, run, world, 6)
        assert old.prune(lease, before=steps.night(1)) == Pruned(0, 0, 0)
        found = old.prune(lease, before=steps.night(9), dry_run=True)
        assert found.statements >= 1  # the first version of Q77, which no request names
        old.prune(lease, before=steps.night(9))
        closed = "SELECT count(*) FROM statement WHERE guid LIKE 'Q77%' AND seen_to IS NOT NULL"
        assert old.query(closed).rows == ((0,),)
        standing = "SELECT count(*) FROM statement WHERE guid LIKE 'Q77%'"
        assert old.query(standing).rows == ((1,),)
    old.close()


@pytest.mark.parametrize("pruned", [RecallCheck, Statement, Change])
def test_pruning_scans_no_table_for_each_row_that_goes(
    ledger: Ledger, pruned: type[RecallCheck | Statement | Change]
) -> None:
    """The database looks for rows that name a deleted one: through an index, or through all of them."""
    with reading(ledger.engine) as connection:
        found = inspect(connection)
        for table in found.get_table_names():
            indexed = {index["column_names"][0] for index in found.get_indexes(table)}
            indexed |= {found.get_pk_constraint(table)["constrained_columns"][0]}
            named = [
                column
                for key in found.get_foreign_keys(table)
                if key["referred_table"] == pruned.__tablename__
                for column in key["constrained_columns"]
            ]
            assert set(named) <= indexed, table


def test_an_archive_is_a_whole_ledger(old: Ledger, files: CheckpointFiles, tmp_path: Path) -> None:
    target = tmp_path / "archive.db"
    if old.url.get_backend_name() != "sqlite":
        with pytest.raises(LedgerUrlError, match="pg_dump"):
            old.archive(target)
        return
    with old.writer(steps.MODEL, holder="a sync"):  # which need not wait
        old.archive(target)
    with Ledger.open(str(target)) as copy:
        assert everything(copy) == everything(old)
        assert doctor.examine(copy, copy.model(steps.MODEL), files, now=steps.night(5)).healthy
    with pytest.raises(LedgerUrlError, match="exists"):
        old.archive(target)

    def with_little_room() -> None:
        limit_files(20_000)
        with pytest.raises(DiskFullError):
            old.archive(tmp_path / "second.db")

    assert in_child(with_little_room) == 0
    assert sorted(path.name for path in tmp_path.glob("*second*")) == []
    old.close()


def test_the_documented_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger.open("sqlite:///ledger.db") as ledger:
        ledger.ensure_model("smollm2", "local", steps.BASE)
    (lines,) = re.findall(r"```python\n(.*?)```", LEDGER_MD.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(lines, "docs/ledger.md", "exec"), {})
    assert (tmp_path / "ledger-2026.db").exists()

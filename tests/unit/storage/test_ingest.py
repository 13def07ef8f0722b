"""What was pulled enters the ledger once, and never backwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CursorPastLagError
from storage.ledger import Ledger
from storage.records.pulled import EntityRow, IngestReport, StatementRow
from tests.unit.storage import steps
from tests.unit.storage.steps import night, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from storage.records.runs import Lease


@pytest.fixture
def lease(ledger: Ledger) -> Iterator[Lease]:
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        yield lease


class Pull:
    """Pulls into one ledger, run after run."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self.ledger = ledger
        self.lease = lease
        self.number = 0

    def __call__(
        self,
        statements: Iterable[StatementRow] = (),
        entities: Iterable[EntityRow] = (),
        groups: Iterable[tuple[str, str]] = (),
    ) -> IngestReport:
        self.number += 1
        self.run = self.ledger.begin_run(self.lease, "sync", reference_time=night(self.number))
        report = self.ledger.ingest(
            self.lease,
            self.run,
            source=steps.SOURCE,
            cursor_to=night(self.number),
            entities=entities,
            statements=statements,
            pulled_groups=groups,
        )
        self.ledger.finish_run(self.lease, self.run, "nothing")
        return report

    def touched(self) -> list[tuple[str, str]]:
        """Groups marked; recording an empty plan clears the marks."""
        groups = steps.to_review(self.ledger, self.lease.model)
        marks = {(group.subject, group.property): group.marks for group in groups}
        self.ledger.record_plan(self.lease, self.run, [], [], reviewed=marks, flip_memory=steps.FLIP_MEMORY)
        return list(marks)

    def current(self) -> dict[str, tuple[str, int]]:
        rows = self.ledger.query("SELECT guid, value, revision FROM statement WHERE seen_to IS NULL").rows
        return {guid: (value, revision) for guid, value, revision in rows}


@pytest.fixture
def pull(ledger: Ledger, lease: Lease) -> Pull:
    return Pull(ledger, lease)


def test_a_mark_that_a_plan_leaves_is_there_the_next_night(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 1)])
    pair = ("Q1", "P6")
    pull.ledger.record_plan(pull.lease, pull.run, [], [], reviewed={pair: 0}, flip_memory=steps.FLIP_MEMORY)
    assert pull.touched() == [pair]
    assert pull.touched() == []


def test_everything_is_counted_and_touched_once(pull: Pull) -> None:
    first = [
        statement("Q1", "P6", "Q10", 1),
        statement("Q2", "P6", "Q20", 1),
        statement("Q3", "P6", "Q30", 1),
    ]
    groups = [(row.subject, row.property) for row in first]
    assert pull(first, groups=groups) == IngestReport(3, 0, 0, 0, 0, 3)
    assert pull.touched() == groups
    assert pull(first, groups=groups) == IngestReport(0, 0, 0, 3, 0, 0)
    second = [statement("Q1", "P6", "Q11", 2), statement("Q2", "P6", "Q20", 2)]
    assert pull(second, groups=groups) == IngestReport(0, 1, 1, 1, 0, 2)
    assert pull.touched() == [("Q1", "P6"), ("Q3", "P6")]
    assert pull.current() == {"Q1$P6": ("Q11", 2), "Q2$P6": ("Q20", 1)}


def test_a_statement_missing_from_a_group_that_was_not_pulled_stays(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 1), statement("Q1", "P35", "Q11", 1)])
    assert pull([statement("Q1", "P6", "Q10", 2)], groups=[("Q1", "P6")]).deleted == 0
    assert set(pull.current()) == {"Q1$P6", "Q1$P35"}


def test_an_answer_of_a_lagging_replica_changes_nothing(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q11", 5)], [EntityRow("Q1", "new", "en", revision=5)])
    pull.touched()
    stale = pull(
        [statement("Q1", "P6", "Q10", 4)], [EntityRow("Q1", "old", "en", revision=4)], groups=[("Q1", "P6")]
    )
    assert stale == IngestReport(0, 0, 0, 0, 1, 0)
    vanished = pull([], [EntityRow("Q1", "old", "en", revision=4)], groups=[("Q1", "P6")])
    assert vanished.deleted == 0
    assert pull.current() == {"Q1$P6": ("Q11", 5)}
    assert pull.ledger.labels(["Q1"])["Q1"] == EntityRow("Q1", "new", "en", revision=5)


def test_nor_does_one_where_what_it_contradicts_stood_unchanged_since_an_older_revision(pull: Pull) -> None:
    """A row keeps the revision at which its content was new; how far its item was read is the item's."""
    pull([statement("Q1", "P6", "Q10", 5)], [EntityRow("Q1", revision=5)])
    pull([statement("Q1", "P6", "Q10", 9)], [EntityRow("Q1", revision=9)], groups=[("Q1", "P6")])
    late = pull([statement("Q1", "P6", "Q11", 7)], [EntityRow("Q1", revision=7)], groups=[("Q1", "P6")])
    assert (late.changed, late.stale) == (0, 1)
    assert pull([], [EntityRow("Q1", revision=7)], groups=[("Q1", "P6")]).deleted == 0
    assert pull.current() == {"Q1$P6": ("Q10", 5)}


def test_a_label_that_was_taken_away_is_known_no_more(pull: Pull) -> None:
    pull(
        [statement("Q1", "P6", "Q10", 5)],
        [EntityRow("Q1", "one", "en", revision=5), EntityRow("Q10", "ten", "en")],
    )
    pull.touched()
    pull([], [EntityRow("Q1", revision=5), EntityRow("Q10", "")])
    known = pull.ledger.labels(["Q1", "Q10"])
    assert (known["Q1"].label, known["Q10"].label, known["Q10"].language) == ("one", None, None)
    assert pull.touched() == [("Q1", "P6")]


def test_a_lagging_replica_brings_no_deleted_statement_back(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 4)], [EntityRow("Q1", revision=4)])
    assert pull([], [EntityRow("Q1", revision=5)], groups=[("Q1", "P6")]).deleted == 1
    late = pull([statement("Q1", "P6", "Q10", 4)], [EntityRow("Q1", revision=4)], groups=[("Q1", "P6")])
    assert (late.inserted, late.stale, pull.current()) == (0, 1, {})
    assert pull([statement("Q1", "P6", "Q10", 6)], [EntityRow("Q1", revision=6)]).inserted == 1


def test_an_item_counts_as_read_at_the_revision_of_its_statements(pull: Pull) -> None:
    """The probe saw revision 6, the statements came from a replica at 5: the next probe must find news."""
    pull([statement("Q1", "P6", "Q10", 5)], [EntityRow("Q1", revision=6), EntityRow("Q2", revision=6)])
    known = pull.ledger.labels(["Q1", "Q2"])
    assert (known["Q1"].revision, known["Q2"].revision) == (5, 6)


def test_a_restored_statement_opens_again_even_at_its_old_revision(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 1)])
    assert pull([], groups=[("Q1", "P6")]).deleted == 1
    assert pull([statement("Q1", "P6", "Q10", 1)]).inserted == 1
    rows = pull.ledger.query("SELECT ending FROM statement ORDER BY id").rows
    assert rows == (("deleted",), (None,))


def test_of_several_copies_in_one_answer_the_newest_wins(pull: Pull) -> None:
    copies = [statement("Q1", "P6", f"Q{number}", number) for number in (1, 3, 2)]
    assert pull([*copies, copies[1]]).inserted == 1
    assert pull.current() == {"Q1$P6": ("Q3", 3)}
    pull([statement("Q1", "P6", "Q5", 5), statement("Q1", "P6", "Q4", 4)])
    assert pull.current() == {"Q1$P6": ("Q5", 5)}


def test_a_statement_that_moved_to_another_item_touches_both(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 1, guid="Q1$a")])
    pull.touched()
    pull([statement("Q2", "P6", "Q10", 2, guid="Q1$a")])
    assert pull.touched() == [("Q1", "P6"), ("Q2", "P6")]


def test_a_new_label_touches_the_item_and_the_facts_it_is_the_value_of(pull: Pull) -> None:
    pull(
        [statement("Q1", "P6", "Q10", 1), statement("Q10", "P19", "Q20", 1)],
        [EntityRow("Q10", "Ada", "en"), EntityRow("Q20", "Bern", "en")],
    )
    pull.touched()
    assert pull(entities=[EntityRow("Q10", "Ada", "en")]).touched == 0
    assert pull(entities=[EntityRow("Q10", "Ada L.", "en")]).touched == 2
    assert pull.touched() == [("Q1", "P6"), ("Q10", "P19")]
    assert pull.ledger.labels(["Q10", "Q99"]) == {"Q10": EntityRow("Q10", "Ada L.", "en")}


def test_a_merge_and_a_deletion_touch_the_item_and_end_its_statements(pull: Pull) -> None:
    pull(
        [statement("Q1", "P6", "Q10", 1), statement("Q2", "P6", "Q10", 1)],
        [EntityRow("Q1", "a", "en", revision=1)],
    )
    pull.touched()
    merged = pull(entities=[EntityRow("Q1", redirect_to="Q5")], groups=[("Q1", "P6")])
    assert (merged.deleted, pull.touched()) == (1, [("Q1", "P6")])
    gone = pull(entities=[EntityRow("Q2", deleted=True)], groups=[("Q2", "P6")])
    assert (gone.deleted, pull.touched()) == (1, [("Q2", "P6")])
    assert pull.ledger.labels(["Q1"])["Q1"].redirect_to == "Q5"
    assert pull.ledger.labels(["Q2"])["Q2"].deleted
    pull(entities=[EntityRow("Q1", revision=9)])
    assert pull.ledger.labels(["Q1"])["Q1"] == EntityRow("Q1", "a", "en", revision=9)


def test_a_probe_and_a_label_of_one_item_are_one_row(pull: Pull) -> None:
    modified = night(3)
    pull(entities=[EntityRow("Q1", revision=7, modified_at=modified), EntityRow("Q1", "name", "en")])
    assert pull.ledger.labels(["Q1"])["Q1"] == EntityRow("Q1", "name", "en", revision=7, modified_at=modified)


def test_tracking_adds_to_what_is_known(pull: Pull) -> None:
    pull([statement("Q1", "P6", "Q10", 7)], [EntityRow("Q1", "name", "en", revision=7)])
    assert pull.ledger.tracked() == []
    assert pull.ledger.track(pull.lease, ["Q1", "Q3", "Q1"]) == 2
    assert pull.ledger.track(pull.lease, ["Q1"]) == 0
    assert [row.id for row in pull.ledger.tracked()] == ["Q1", "Q3"]
    assert [row.revision for row in pull.ledger.tracked(["P6"])] == [7]


def test_the_cursor_moves_with_the_rows_and_never_back(pull: Pull, ledger: Ledger) -> None:
    assert ledger.cursor(steps.SOURCE) is None
    pull()
    pull()
    assert ledger.cursor(steps.SOURCE) == night(2)
    pull.number = 0
    pull()
    assert ledger.cursor(steps.SOURCE) == night(2)
    run = ledger.begin_run(pull.lease, "sync", reference_time=night(9))
    with pytest.raises(CursorPastLagError):
        ledger.ingest(
            pull.lease,
            run,
            source=steps.SOURCE,
            cursor_to=night(9),
            lag_at=night(8),
            entities=[],
            statements=[statement("Q1", "P6", "Q1", 1)],
            pulled_groups=[],
        )
    assert pull.current() == {}


def test_rows_may_come_from_a_generator_and_a_failing_one_leaves_nothing(pull: Pull) -> None:
    def broken() -> Iterator[StatementRow]:
        yield statement("Q1", "P6", "Q10", 1)
        raise ConnectionError("the answer was cut off")

    with pytest.raises(ConnectionError):
        pull(broken())
    assert pull.current() == {}
    assert pull.ledger.cursor(steps.SOURCE) is None
    assert pull(statement(f"Q{n}", "P6", "Q1", 1) for n in range(1000)).inserted == 1000


def test_a_clock_that_runs_backwards_makes_no_negative_time(ledger_url: str) -> None:
    times = iter(night(10) - timedelta(hours=number) for number in range(1000))
    with Ledger.open(ledger_url, clock=lambda: next(times)) as ledger:
        ledger.ensure_model(steps.MODEL, "local", steps.BASE)
        with ledger.writer(steps.MODEL, holder="test") as lease:
            pull = Pull(ledger, lease)
            pull([statement("Q1", "P6", "Q10", 1)])
            pull([statement("Q1", "P6", "Q11", 2)])
            pull([], groups=[("Q1", "P6")])
        assert ledger.cursor(steps.SOURCE) == night(3)
        rows = ledger.query("SELECT value, seen_from <= seen_to FROM statement ORDER BY id").rows
    assert [(value, bool(forward)) for value, forward in rows] == [("Q10", True), ("Q11", True)]


ROWS = st.dictionaries(
    st.tuples(st.sampled_from(["Q1", "Q2", "Q3"]), st.sampled_from(["P6", "P35"])),
    st.sampled_from(["Q10", "Q11", "Q12"]),
)


@settings(max_examples=25, deadline=None)
@given(worlds=st.lists(ROWS, min_size=1, max_size=6))
def test_the_ledger_stands_as_the_last_pull_said(
    worlds: list[dict[tuple[str, str], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path: Path = tmp_path_factory.mktemp("ingest") / "ledger.db"
    groups = [(subject, prop) for subject in ("Q1", "Q2", "Q3") for prop in ("P6", "P35")]
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.ensure_model(steps.MODEL, "local", steps.BASE)
        with ledger.writer(steps.MODEL, holder="test") as lease:
            pull = Pull(ledger, lease)
            before: dict[str, str] = {}
            for revision, world in enumerate(worlds, start=1):
                rows = [statement(subject, prop, value, revision) for (subject, prop), value in world.items()]
                report = pull(rows, groups=groups)
                after = {row.id: row.value for row in rows}
                assert {guid: value for guid, (value, _) in pull.current().items()} == after
                assert report.inserted == len(after.keys() - before.keys())
                assert report.deleted == len(before.keys() - after.keys())
                assert report.changed == sum(before[g] != after[g] for g in after.keys() & before.keys())
                assert report.unchanged == sum(before[g] == after[g] for g in after.keys() & before.keys())
                assert pull(rows, groups=groups) == replace(
                    report, inserted=0, changed=0, deleted=0, unchanged=len(after), touched=0
                )
                before = after

"""No documented query, nor `status` or `history`, reads a big table from end to end."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from benchmarks import views
from storage.ledger import Ledger

Scale = tuple[Ledger, views.Filler]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.storage.databases import Postgres

BIG = {
    "statement", "edit", "edit_request", "request_source", "recall_check", "holding", "change", "fact",
    "entity", "subject_state",
}  # fmt: skip
ALIASES = {
    "statement": "s", "edit": "e n edit_1", "edit_request": "r", "request_source": "x", "recall_check": "k",
    "holding": "h", "change": "g", "fact": "f",
}  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scale]:
    """One filled ledger a database; only the last test changes it."""
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    url = server.make() if server else f"sqlite:///{tmp_path_factory.mktemp('scale') / 'ledger.db'}"
    filler = views.fill(url, statements=60_000, edits=48_000, edits_a_night=40)
    with Ledger.open(url) as ledger:
        yield ledger, filler
    if server:
        server.drop(url)


def scanned(ledger: Ledger, sql: str, given: dict[str, Any]) -> set[str]:
    """Ask the database how it would run a query; name the big tables it would read whole."""
    with ledger.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            steps = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"), given)]
            names = {match.group(1) for step in steps if (match := re.match(r"SCAN (\w+)", step))}
            aliases = {alias: table for table, listed in ALIASES.items() for alias in listed.split()}
            # `s` is a small table in the views of recall and quarantine.
            if "recall_by_relation" in sql or "quarantine" in sql:
                aliases.pop("s")
            return {aliases.get(name, name) for name in names} & BIG
        found = connection.execute(text(f"EXPLAIN (FORMAT JSON) {sql}"), given).scalar_one()
        plan = found if isinstance(found, list) else json.loads(found)
        return set(_sequential(plan[0]["Plan"])) & BIG


def _sequential(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from _sequential(child)


def test_no_documented_query_reads_a_big_table_whole(big: Scale) -> None:
    ledger, filler = big
    given = views.values(filler, 5)
    culprits = {
        title: tables
        for title, sql in views.QUERIES.items()
        if (tables := scanned(ledger, sql, views.bound(sql, given)))
    }
    assert culprits == {}


def test_no_question_of_the_program_reads_a_big_table_whole(big: Scale) -> None:
    ledger, filler = big
    given = views.values(filler, 5)
    model = ledger.model(views.MODEL)
    asked: list[tuple[str, Any]] = []
    event.listen(ledger.engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
    ledger.status(model)
    ledger.history(model, given["subject"])
    ledger.live_facts(model, subjects=[given["subject"]])
    ledger.owed(model)
    ledger.head(model)
    ledger.labels([given["subject"]])
    questions = [(sql, values) for sql, values in asked if sql.lstrip().startswith("SELECT")]
    assert len(questions) >= 10
    with ledger.engine.connect() as connection:
        for sql, values in questions:
            if connection.dialect.name == "sqlite":
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
                whole = {m.group(1) for row in plan if (m := re.match(r"SCAN (\w+)$", row[3]))}
            else:
                plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", values).scalar_one()
                whole = set(_sequential(plan[0]["Plan"]))
            assert whole & BIG == set(), sql


def test_a_rollback_over_thousands_of_edits_keeps_live_and_held_together(
    big: Scale,
) -> None:
    ledger, filler = big
    model = ledger.model(views.MODEL)
    with ledger.writer(views.MODEL, holder="test") as lease:
        ledger.rollback(lease, filler.nights // 2, reason="half of it back", review=False)
    assert len(ledger.lineage(model)) == filler.nights // 2
    counts = ledger.query(
        "SELECT (SELECT count(*) FROM live_facts), (SELECT count(*) FROM fact_history WHERE held_to IS NULL)"
    ).rows
    assert counts == ((filler.facts, filler.facts),)

"""docs/ledger.md says the truth: every query runs, every column is there, datasette serves them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from storage import migrate
from storage.errors import QueryRefusedError
from storage.records.checkpoints import CheckRow
from storage.records.planned import ChangeRow
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
QUERIES = {
    title: sql.strip()
    for title, sql in re.findall(r"### (.+?)\n(?:(?!###)[\s\S])*?```sql\n([\s\S]*?)```", PAGE)
}
TABLES = {
    name: re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:]
    for name, table in re.findall(r"^### (\w+)\n((?:(?!^##)[\s\S])*)", PAGE, re.MULTILINE)
}
VALUES: dict[str, Any] = {
    "model": steps.MODEL,
    "subject": "Q1",
    "property": "P6",
    "value": "Q999",
    "since": "2026-01-01",
    "at": "9999-01-01",
    "after": 0,
    "until": 1,
    "position": 0,
    "share": 0.99,
    "checkpoint_id": 2,
    "statement_id": "Q1$P6",
}


def test_the_read_only_role_is_granted_every_view() -> None:
    granted = re.search(r"GRANT SELECT ON ([\s\S]*?) TO factsync_reader", PAGE)
    assert granted is not None
    views = re.findall(r"^CREATE VIEW (\w+)", (ROOT / "storage" / "views.sql").read_text(), re.MULTILINE)
    assert re.split(r",\s+", granted[1]) == views


@pytest.fixture
def told(ledger: Ledger, files: CheckpointFiles) -> Ledger:
    """A ledger in which every question has an answer."""
    world = steps.World()
    for number in range(1, 5):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    steps.sync(ledger, files, world, 1)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        world.set("Q1", "P6", "Q999")
        steps.ingest(ledger, lease, run, world, 2)
        steps.plan(ledger, lease, run)
        waits = ChangeRow(
            "quarantine", "Q9", "P6", reason="hold: seen once", new_value="Q1", new_label="label Q1"
        )
        ledger.record_plan(lease, run, [waits], [], reviewed={}, flip_memory=steps.FLIP_MEMORY)
        owed = ledger.owed(lease.model)
        intent = ledger.begin_checkpoint(
            lease, run, [r.id or 0 for r in owed], algorithm="memit", settings={}
        )
        digest = files.put({"delta.safetensors": b"2"}, {"parent": intent.parent_digest})
        edits, checks = steps.measured(intent.requests)
        later = CheckRow(
            "retention", passed=False, subject="Q2", property="P6", expected="label Q102", p_new=0.2
        )
        failed = [type(edit)(**{**_fields(edit), "exact": False}) for edit in edits]
        ledger.record_candidate(
            lease,
            intent.id,
            digest=digest,
            path=digest,
            size_bytes=1,
            files={},
            metrics={"recall": 0.5},
            edits=failed,
            checks=[*checks, later],
        )
        ledger.promote(lease, intent.id, reason="gates passed")
        ledger.finish_run(lease, run, "succeeded", counters={"edits": 1})
        ledger.rollback(lease, intent.parent, reason="rolled back by Ada: looks wrong", review=False)
        ledger.rollback(lease, intent.id, reason="rolled back by Ada: was right", review=False)
    return ledger


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def test_the_page_answers_all_its_questions(told: Ledger) -> None:
    assert len(QUERIES) >= 12
    for title, sql in QUERIES.items():
        wanted = {name: VALUES[name] for name in re.findall(r"(?<!:):([a-z_]+)", sql)}
        result = told.query(sql, wanted)
        assert result.rows, title


def test_every_view_is_documented_column_by_column(told: Ledger) -> None:
    assert set(TABLES) == set(migrate.views())
    for name, columns in TABLES.items():
        assert told.query(f"SELECT * FROM {name}").columns == tuple(columns), name


def test_the_answers_are_the_same_on_both_databases(told: Ledger) -> None:
    """Not only the columns: the rows, as far as they hold no moment."""
    rows = told.query(
        QUERIES["Why does it say so: which statements, at which revisions, stand behind the answer?"], VALUES
    )
    assert [(row[1], row[2], row[3]) for row in rows.rows] == [("label Q999", "Q1$P6", 2)]
    held = told.query("SELECT target FROM fact_history WHERE subject = 'Q1' ORDER BY held_from")
    assert held.rows == (("label Q101",), ("label Q999",), ("label Q101",), ("label Q999",))
    first, second = told.lineage(told.model(steps.MODEL))
    moves = told.query(QUERIES["Who went back, when and why?"], VALUES).rows
    assert [row[1:] for row in moves] == [
        (first.digest, second.digest, "rolled back by Ada: was right"),
        (second.digest, first.digest, "rolled back by Ada: looks wrong"),
    ]


def test_datasette_offers_the_same_queries() -> None:
    canned = yaml.safe_load((ROOT / "docs" / "datasette.yaml").read_text(encoding="utf-8"))
    offered = {
        query["title"]: query["sql"].strip() for query in canned["databases"]["ledger"]["queries"].values()
    }
    assert offered == QUERIES


@pytest.fixture
def datasette(told: Ledger) -> Iterator[str]:
    pytest.importorskip("datasette")
    path = told.url.database
    if path is None or told.url.get_backend_name() != "sqlite":
        pytest.skip("datasette reads SQLite files")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "datasette",
        "serve",
        path,
        "--metadata",
        str(ROOT / "docs" / "datasette.yaml"),
    ]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        _wait(base)
        yield base
    finally:
        server.terminate()
        server.wait(10)


def _wait(base: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{base}/-/versions.json", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    pytest.fail("datasette did not start")


def test_datasette_answers_a_canned_query_on_the_live_file(told: Ledger, datasette: str) -> None:
    name = "what-does-the-model-say-about-an-item-and-since-when"
    with urllib.request.urlopen(
        f"{datasette}/ledger/{name}.json?subject=Q1&_shape=array", timeout=30
    ) as reply:
        rows = json.load(reply)
    assert [row["target"] for row in rows] == ["label Q999"]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM edit",
        "INSERT INTO model (name) VALUES ('x')",
        "DROP VIEW live_facts",
        "CREATE TABLE mine (a integer)",
        "SELECT 1; DELETE FROM edit",
        "SELECT 1; COMMIT; BEGIN READ WRITE; UPDATE model SET base_ref = 'mine'; COMMIT",
        "COMMIT; UPDATE model SET base_ref = 'mine'",
        "SELEC 1",
        "SELECT nothing FROM live_facts",
        "SELECT :missing",
    ],
)
def test_the_shell_only_reads(told: Ledger, sql: str) -> None:
    with pytest.raises(QueryRefusedError):
        told.query(sql)
    model = told.model(steps.MODEL)
    assert (len(told.live_facts(model)), model.base_ref) == (4, "local")


def test_the_shell_explains_a_query(told: Ledger) -> None:
    assert told.query(
        "EXPLAIN SELECT target FROM live_facts WHERE subject = :subject", {"subject": "Q1"}
    ).rows


def test_the_shell_says_when_there_is_more(told: Ledger) -> None:
    result = told.query("SELECT subject FROM live_facts ORDER BY subject;", limit=2)
    assert (result.columns, result.rows, result.truncated) == (("subject",), (("Q1",), ("Q2",)), True)

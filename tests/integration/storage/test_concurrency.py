"""Two writers, one model; sleepers that wake up late; fifty readers."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from storage.database import reading, writing
from storage.errors import LockHeldError, StaleLeaseError
from storage.ledger import Ledger
from storage.records.runs import Lease
from tests.unit.storage import steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from storage.checkpoints import CheckpointFiles
    from storage.records.planned import Group
    from tests.unit.storage.databases import Postgres


def open_again(ledger: Ledger, **options: float) -> Ledger:
    return Ledger.open(ledger.url.render_as_string(hide_password=False), **options)  # type: ignore[arg-type]


@pytest.fixture
def world() -> steps.World:
    world = steps.World()
    for number in range(1, 6):
        world.set(f"Q{number}", "P6", f"Q{100 + number}")
    return world


def test_the_second_writer_is_told_who_the_first_is(ledger: Ledger) -> None:
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    ledger.ensure_model("other", "local", steps.BASE)
    with ledger.writer(steps.MODEL, holder="sync 12 on host a, process 7"), open_again(ledger) as second:
        with (
            pytest.raises(LockHeldError, match="sync 12 on host a, process 7") as refusal,
            second.writer(steps.MODEL, holder="sync 13"),
        ):
            pass
        assert refusal.value.since is not None
        with second.writer("other", holder="sync 14"):
            pass
    with ledger.writer(steps.MODEL, holder="sync 15") as lease:
        assert lease.epoch == 2


def test_an_exception_frees_the_lock_and_leaves_no_holder(ledger: Ledger) -> None:
    model = ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    with pytest.raises(RuntimeError), ledger.writer(steps.MODEL, holder="unlucky"):
        raise RuntimeError
    assert ledger.status(model).holder is None
    with ledger.writer(steps.MODEL, holder="next") as lease:
        assert lease.epoch == 2


def test_a_dead_holders_lock_is_free_within_a_second(ledger: Ledger) -> None:
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    reader, writer = os.pipe()

    def hold() -> None:
        with open_again(ledger) as mine, mine.writer(steps.MODEL, holder="soon dead"):
            os.write(writer, b"x")
            time.sleep(60)

    def kill_when_held() -> None:
        child = os.fork()
        if child == 0:
            hold()
            os._exit(1)
        os.read(reader, 1)
        with pytest.raises(LockHeldError, match="soon dead"), ledger.writer(steps.MODEL, holder="too early"):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    kill_when_held()
    start = time.monotonic()
    while True:
        try:
            with ledger.writer(steps.MODEL, holder="heir"):
                break
        except LockHeldError:
            assert time.monotonic() - start < 1
            time.sleep(0.005)
    assert time.monotonic() - start < 1


def test_a_sleeper_that_wakes_up_late_writes_nothing(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """Its lock is gone (the connection dropped, the disk failed over) and the process does not know."""
    steps.sync(ledger, files, world, 1)
    with ledger.writer(steps.MODEL, holder="sleeper") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(2))
        world.set("Q1", "P6", "Q999")
        steps.ingest(ledger, lease, run, world, 2)
        steps.plan(ledger, lease, run)
        checkpoint = steps.make_candidate(ledger, lease, run, files)
        assert checkpoint is not None
        stale = Lease(lease.model, lease.epoch - 1, "sleeper")
        before = ledger.status(lease.model)
        for act in (
            lambda: ledger.recover(stale, files),
            lambda: ledger.begin_run(stale, "sync", reference_time=steps.night(3)),
            lambda: steps.ingest(ledger, stale, run, world, 3),
            lambda: ledger.record_plan(stale, run, [], [], reviewed={}, flip_memory=steps.FLIP_MEMORY),
            lambda: ledger.begin_checkpoint(stale, run, [], algorithm="memit", settings={}),
            lambda: ledger.promote(stale, checkpoint, reason="mine"),
            lambda: ledger.reject(stale, checkpoint, reason="mine"),
            lambda: ledger.rollback(stale, None, reason="mine"),
            lambda: ledger.finish_run(stale, run, "succeeded"),
        ):
            with pytest.raises(StaleLeaseError):
                act()
        assert ledger.status(lease.model) == before
        ledger.promote(lease, checkpoint, reason="gates passed")
    assert steps.held(ledger) == world.values


def test_a_promotion_swaps_the_head_it_was_made_on(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    first = steps.sync(ledger, files, world, 1)["checkpoint"]
    world.set("Q1", "P6", "Q999")
    second = steps.sync(ledger, files, world, 2, verdict="leave")["checkpoint"]
    assert second is not None
    with writing(ledger.engine) as connection:
        connection.execute(text("UPDATE model SET head_checkpoint_id = NULL"))
    with ledger.writer(steps.MODEL, holder="test") as lease:
        with pytest.raises(StaleLeaseError):
            ledger.promote(lease, second, reason="gates passed")
        assert ledger.checkpoint(lease.model, second).state == "candidate"
        assert first is not None
        assert ledger.checkpoint(lease.model, first).state == "promoted"


def test_two_processes_that_open_an_empty_ledger_make_one(ledger_url: str) -> None:
    fresh = ledger_url.replace("ledger.db", "fresh.db")
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with Ledger.open(fresh) as mine:
                    mine.ensure_model(f"model {number % 2}", "local", steps.BASE)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    with Ledger.open(fresh) as ledger:
        assert [model.name for model in ledger.models()] == ["model 0", "model 1"]


def test_writers_of_two_models_take_turns_and_both_finish(ledger: Ledger, files: CheckpointFiles) -> None:
    for name in ("one", "two"):
        ledger.ensure_model(name, "local", steps.BASE)

    def work(name: str) -> None:
        with open_again(ledger, busy_timeout_s=30) as mine, mine.writer(name, holder=name) as lease:
            for number in range(15):
                run = mine.begin_run(lease, "sync", reference_time=steps.night(number))
                mine.ingest(
                    lease,
                    run,
                    source=name,
                    cursor_to=steps.night(number),
                    entities=[],
                    statements=[steps.statement(f"Q{n}", "P6", f"Q{number}", number + 1) for n in range(20)],
                    pulled_groups=[],
                )
                mine.finish_run(lease, run, "nothing")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["one", "two"]))
    rows = ledger.query("SELECT count(*), min(revision) FROM statement WHERE seen_to IS NULL").rows
    assert rows == ((20, 15),)
    assert [ledger.cursor(name) for name in ("one", "two")] == [steps.night(14)] * 2


def read_by_another(ledger: Ledger, world: steps.World, number: int) -> None:
    """The night of a second model, as far as it concerns the first: it ingests the world."""
    with ledger.writer("other", holder="the other's night") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(number))
        steps.ingest(ledger, lease, run, world, number)


def marks_of(groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    return {(group.subject, group.property): group.marks for group in groups}


def test_what_another_model_reads_while_a_plan_is_made_stays_to_review(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    ledger.ensure_model("other", "local", steps.BASE)
    ledger.ensure_model(steps.MODEL, "local", steps.BASE)
    with ledger.writer(steps.MODEL, holder="test") as lease:
        run = ledger.begin_run(lease, "sync", reference_time=steps.night(1))
        steps.ingest(ledger, lease, run, world, 1)
        groups = steps.to_review(ledger, lease.model)
        decided = [steps.decide(group) for group in groups]
        world.set("Q1", "P6", "Q999")
        read_by_another(ledger, world, 2)
        ledger.record_plan(
            lease,
            run,
            [change for changes, _ in decided for change in changes],
            [request for _, requests in decided for request in requests],
            reviewed=marks_of(groups),
            flip_memory=steps.FLIP_MEMORY,
        )
        assert [(group.subject, group.property) for group in steps.to_review(ledger, lease.model)] == [
            ("Q1", "P6")
        ]
    steps.sync(ledger, files, world, 2)
    assert steps.held(ledger) == world.values
    assert ledger.status(ledger.model(steps.MODEL)).to_review == 0


def test_a_plan_waits_for_no_other_models_news_and_clears_none(
    postgres: Postgres, world: steps.World
) -> None:
    """The plan is recorded while the other's pull has marked the group and is not committed yet."""
    url = postgres.make()
    with Ledger.open(url, busy_timeout_s=0.5) as ledger:
        ledger.ensure_model("other", "local", steps.BASE)
        ledger.ensure_model(steps.MODEL, "local", steps.BASE)
        with ledger.writer(steps.MODEL, holder="test") as lease:
            run = ledger.begin_run(lease, "sync", reference_time=steps.night(1))
            steps.ingest(ledger, lease, run, world, 1)
            seen = marks_of(steps.to_review(ledger, lease.model))

            def record(name: str) -> None:
                if name == "ingest.before_commit":
                    ledger.record_plan(lease, run, [], [], reviewed=seen, flip_memory=steps.FLIP_MEMORY)

            world.set("Q1", "P6", "Q999")
            with Ledger.open(url, on_point=record) as other:
                read_by_another(other, world, 2)
            assert list(marks_of(steps.to_review(ledger, lease.model))) == [("Q1", "P6")]
    postgres.drop(url)


def test_a_model_registered_during_a_pull_reviews_what_the_pull_brings(
    postgres: Postgres, world: steps.World
) -> None:
    url = postgres.make()
    with Ledger.open(url) as ledger:
        ledger.ensure_model("other", "local", steps.BASE)
        register = threading.Thread(target=lambda: ledger.ensure_model(steps.MODEL, "local", steps.BASE))

        def begin(name: str) -> None:
            if name == "ingest.before_commit":
                register.start()
                register.join(1)  # it waits for the commit, which this call holds up

        with Ledger.open(url, on_point=begin) as other:
            read_by_another(other, world, 1)
        register.join()
        assert ledger.status(ledger.model(steps.MODEL)).to_review == len(world.values)
    postgres.drop(url)


def test_a_reader_keeps_its_state_and_never_blocks_the_writer(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """A night passes inside a reader's transaction, which a lock of the reader's would end with an error."""
    steps.sync(ledger, files, world, 1)
    world.set("Q1", "P6", "Q999")

    def heads(connection: Connection) -> int | None:
        return connection.execute(text("SELECT head_checkpoint_id FROM model")).scalar()

    with open_again(ledger) as mine, reading(mine.engine) as reader:
        before = heads(reader)
        after = steps.sync(ledger, files, world, 2)["checkpoint"]
        assert heads(reader) == before
    with reading(ledger.engine) as reader:
        assert heads(reader) == after != before


def test_fifty_readers_see_whole_states_while_nights_pass(
    ledger: Ledger, files: CheckpointFiles, world: steps.World
) -> None:
    """Each promotion moves three facts at once: a reader sees all three of a night, or none."""
    for number in (7, 8, 9):
        world.set(f"Q{number}", "P6", "Q1000")
    steps.sync(ledger, files, world, 1)
    done, looking = threading.Event(), threading.Barrier(51, timeout=60)
    seen: set[str] = set()
    torn: list[object] = []

    def read(_number: int) -> None:
        with open_again(ledger) as mine:
            model = mine.model(steps.MODEL)

            def look() -> None:
                values = {row.value for row in mine.live_facts(model, subjects=["Q7", "Q8", "Q9"])}
                if len(values) != 1:
                    torn.append(values)
                seen.update(values)
                mine.status(model)

            look()
            looking.wait()
            while not done.wait(
                1
            ):  # fifty threads that never rest leave the writer little of the interpreter
                look()
            look()

    with ThreadPoolExecutor(50) as pool:
        readers = [pool.submit(read, number) for number in range(50)]
        try:
            looking.wait()
            for night in range(2, 6):
                for number in (7, 8, 9):
                    world.set(f"Q{number}", "P6", f"Q{1000 + night}")
                steps.sync(ledger, files, world, night)
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert torn == []
    assert {"Q1000", "Q1005"} <= seen

"""Any order of syncs, rejections, rollbacks and crashes: the ledger says what a dictionary says."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from storage import crash, doctor
from storage.checkpoints import CheckpointFiles
from storage.ledger import Ledger
from tests.unit.storage import steps

SUBJECTS = st.sampled_from(["Q1", "Q2", "Q3"])
PROPERTIES = st.sampled_from(["P6", "P35"])
VALUES = st.sampled_from(["Q10", "Q11", "Q12", None])
POINTS = st.sampled_from(
    [point for point in crash.POINTS if not point.startswith(("rollback", "decide", "prune"))]
)

Facts = dict[tuple[str, str], str]


class Crash(BaseException):
    """The process ends here, for all the ledger knows."""


@dataclass(frozen=True)
class Promoted:
    """A checkpoint and what the model held with it as head."""

    id: int | None
    facts: tuple[tuple[tuple[str, str], str], ...]


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside a model of it: the facts of each checkpoint, and which one is the head."""

    promoted = Bundle("promoted")

    @initialize(target=promoted)
    def begin(self) -> Promoted:
        self.folder = Path(tempfile.mkdtemp(prefix="fssm"))
        self.number = 0
        self.world = steps.World()
        self.dies_at: str | None = None
        self.ledger = Ledger.open(str(self.folder / "ledger.db"), on_point=self.pass_point)
        self.files = CheckpointFiles(self.folder / "checkpoints", on_point=self.pass_point)
        self.ledger.ensure_model(steps.MODEL, "local", steps.BASE)
        self.head = Promoted(None, ())
        return self.head

    def pass_point(self, name: str) -> None:
        if name == self.dies_at:
            self.dies_at = None
            raise Crash

    @rule(subject=SUBJECTS, prop=PROPERTIES, value=VALUES)
    def the_world_changes(self, subject: str, prop: str, value: str | None) -> None:
        if value is not None or (subject, prop) in self.world.values:
            self.world.set(subject, prop, value)

    def sync(self, verdict: str) -> int | None:
        self.number += 1
        return steps.sync(self.ledger, self.files, self.world, self.number, verdict=verdict)["checkpoint"]

    def stand(self) -> Promoted:
        head = self.ledger.head(self.ledger.model(steps.MODEL))
        self.head = Promoted(head.id if head else None, tuple(sorted(self.world.values.items())))
        return self.head

    @rule(target=promoted)
    def a_night(self) -> Promoted:
        self.sync("promote")
        return self.stand()

    @rule()
    def a_night_whose_candidate_fails(self) -> None:
        self.sync("reject")

    @rule(target=promoted, point=POINTS)
    def a_night_that_dies_and_is_run_again(self, point: str) -> Promoted:
        self.dies_at = point
        try:
            self.sync("promote")
        except Crash:
            self.sync("promote")
        self.dies_at = None
        return self.stand()

    @rule(target=promoted, point=POINTS)
    def a_night_that_dies(self, point: str) -> object:
        self.dies_at = point
        try:
            self.sync("promote")
        except Crash:
            head = self.ledger.head(self.ledger.model(steps.MODEL))
            if (head.id if head else None) == self.head.id:
                return multiple()
        self.dies_at = None
        return self.stand()

    @rule(to=promoted)
    def a_rollback(self, to: Promoted) -> None:
        with self.ledger.writer(steps.MODEL, holder="a person") as lease:
            self.ledger.recover(lease, self.files)
            self.ledger.rollback(lease, to.id, reason="a person said so")
        self.head = to

    @invariant()
    def the_model_holds_what_the_head_held(self) -> None:
        if not hasattr(self, "head"):
            return
        model = self.ledger.model(steps.MODEL)
        assert steps.held(self.ledger) == dict(self.head.facts)
        assert model.head == self.head.id
        assert self.ledger.status(model).live_facts == len(self.head.facts)
        view = self.ledger.query("SELECT subject, property, value FROM live_facts").rows
        assert {(subject, prop): value for subject, prop, value in view} == dict(self.head.facts)
        standing = self.ledger.query(
            "SELECT subject, property, value FROM fact_history WHERE held_to IS NULL"
        ).rows
        assert {(subject, prop): value for subject, prop, value in standing} == dict(self.head.facts)
        lineage = self.ledger.lineage(model)
        assert [row.state for row in lineage] == ["superseded"] * (len(lineage) - 1) + ["promoted"] * bool(
            lineage
        )
        states = {row.subject for row in self.ledger.subject_states(model)}
        assert states == {subject for (subject, _), _ in self.head.facts}

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with self.ledger.writer(steps.MODEL, holder="the end") as lease:
            self.ledger.recover(lease, self.files)
        report = doctor.examine(self.ledger, self.ledger.model(steps.MODEL), self.files)
        self.ledger.close()
        shutil.rmtree(self.folder)
        assert [f for f in report.findings if f.check != "cursors"] == []


LedgerMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLedgerMachine = LedgerMachine.TestCase

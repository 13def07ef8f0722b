"""A small world and the steps of a sync over it, with fake bytes in place of a delta.

The world says what stands in the knowledge base: {(subject, property): value}, a revision a subject. A sync
ingests it, plans with the simplest possible semantics, and makes a checkpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from storage.records.checkpoints import CheckRow, EditRow
from storage.records.planned import ChangeRow, EditRequestRow, Group
from storage.records.pulled import EntityRow, StatementRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger
    from storage.records.runs import Lease, Model

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = "wikidata"
MODEL = "tiny"
BASE = "b" * 64
FLIP_MEMORY = timedelta(days=30)


def night(number: int) -> datetime:
    """Reference time of a night."""
    return START + timedelta(days=number)


def statement(subject: str, prop: str, value: str, revision: int, *, guid: str | None = None) -> StatementRow:
    """A statement with a stable id."""
    return StatementRow(
        id=guid or f"{subject}${prop}",
        subject=subject,
        property=prop,
        value_kind="item",
        value=value,
        rank="normal",
        revision=revision,
        content_hash=hashlib.sha256(f"{subject}{prop}{value}".encode()).hexdigest(),
        qualifiers={"start": "2026-01-01"},
        reference_count=1,
    )


@dataclass
class World:
    """What stands in the knowledge base."""

    values: dict[tuple[str, str], str] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def set(self, subject: str, prop: str, value: str | None) -> None:
        """Change or delete a value; the item gets a new revision."""
        self.revisions[subject] = self.revisions.get(subject, 0) + 1
        if value is None:
            self.values.pop((subject, prop), None)
        else:
            self.values[subject, prop] = value

    def entities(self) -> list[EntityRow]:
        """All subjects, and labels of the values."""
        subjects = [
            EntityRow(s, self.name(s), "en", revision=r, modified_at=START)
            for s, r in sorted(self.revisions.items())
        ]
        return [*subjects, *(EntityRow(v, self.name(v), "en") for v in sorted(set(self.values.values())))]

    def name(self, item: str) -> str:
        """What an item is called."""
        return self.names.get(item, f"label {item}")

    def statements(self) -> list[StatementRow]:
        """All statements."""
        return [statement(s, p, v, self.revisions[s]) for (s, p), v in sorted(self.values.items())]

    def groups(self, properties: Iterable[str] = ("P6", "P35")) -> list[tuple[str, str]]:
        """All groups, empty ones too."""
        return [(s, p) for s in sorted(self.revisions) for p in properties]


def ingest(ledger: Ledger, lease: Lease, run: int, world: World, number: int) -> None:
    """Pull the whole world."""
    ledger.track(lease, world.revisions)
    ledger.ingest(
        lease,
        run,
        source=SOURCE,
        cursor_to=night(number),
        lag_at=night(number),
        entities=world.entities(),
        statements=world.statements(),
        pulled_groups=world.groups(),
    )


def decide(group: Group) -> tuple[list[ChangeRow], list[EditRequestRow]]:
    """The simplest semantics: one value or none."""
    wanted = group.statements[0] if group.statements else None
    held = group.held[0] if group.held else None
    scope = {"subject": group.subject, "property": group.property}
    if wanted is None and held is None:
        return [], []
    if wanted is not None and held is not None and wanted.value == held.value:
        same = group.labels[wanted.value].label == held.label
        return [ChangeRow("unchanged" if same else "relabel", **scope)], []
    old = {"old_value": held.value, "old_label": held.label} if held else {}
    label = group.entity.label or group.subject
    if wanted is None:
        change = ChangeRow("retract", **scope, reason="its statement is gone", **old)
        return [change], [
            EditRequestRow(**scope, slot="", op="retract", subject_label=label, target="", prompts=(), **old)
        ]
    op = "replace" if held else "insert"
    target = group.labels[wanted.value].label or wanted.value
    source = ((wanted.id, wanted.revision),)
    change = ChangeRow(
        op,
        **scope,
        reason="the statement says so",
        new_value_kind=wanted.value_kind,
        new_value=wanted.value,
        new_label=target,
        sources=source,
        **old,
    )
    request = EditRequestRow(
        **scope,
        slot="",
        op=op,
        subject_label=label,
        target=target,
        prompts=(f"The {group.property} of {{}} is",),
        heldback=(f"{{}} has the {group.property}",),
        value_kind=wanted.value_kind,
        value=wanted.value,
        sources=source,
        **old,
    )
    return [change], [request]


def to_review(ledger: Ledger, model: Model, page_size: int = 3) -> list[Group]:
    """The groups that a plan looks at."""
    return list(ledger.groups(model, ledger.pairs_to_review(model), page_size=page_size))


def plan(ledger: Ledger, lease: Lease, run: int) -> None:
    """Plan all groups to review."""
    changes: list[ChangeRow] = []
    requests: list[EditRequestRow] = []
    reviewed = {}
    for group in to_review(ledger, lease.model):
        some, wishes = decide(group)
        changes += some
        requests += wishes
        reviewed[group.subject, group.property] = group.marks
    ledger.record_plan(lease, run, changes, requests, reviewed=reviewed, flip_memory=FLIP_MEMORY)


def delta(requests: Iterable[EditRequestRow]) -> bytes:
    """Fake bytes that depend on what is edited, as a delta would."""
    said = "\n".join(sorted(f"{r.op} {r.subject} {r.property} {r.slot} {r.target}" for r in requests))
    return said.encode() * 50


def measured(requests: Iterable[EditRequestRow]) -> tuple[list[EditRow], list[CheckRow]]:
    """Made-up measures, the same each time."""
    edits, checks = [], []
    for request in requests:
        scope = {"subject": request.subject, "property": request.property, "slot": request.slot}
        edits.append(
            EditRow(
                **scope,
                prompt=request.prompts[0] if request.prompts else "",
                p_new_before=0.01,
                p_old_before=0.5,
                p_new_after=0.9,
                p_old_after=0.01,
                success=True,
                exact=True,
                greedy=request.target,
            )
        )
        checks.append(
            CheckRow("efficacy", passed=True, **scope, expected=request.target, p_new=0.9, p_old=0.01)
        )
        checks.append(
            CheckRow("paraphrase", passed=False, **scope, expected=request.target, p_new=0.4, p_old=0.1)
        )
    return edits, checks


def make_candidate(ledger: Ledger, lease: Lease, run: int, files: CheckpointFiles) -> int | None:
    """Make a candidate of everything owed."""
    owed = ledger.owed(lease.model)
    if not owed:
        return None
    intent = ledger.begin_checkpoint(
        lease, run, [r.id for r in owed if r.id is not None], algorithm="memit", settings={"layers": [3, 4]}
    )
    digest = files.put(
        {"delta.safetensors": delta(intent.requests), "states.safetensors": b"z" * 100},
        {"parent": intent.parent_digest, "base": BASE, "algorithm": "memit"},
    )
    content = files.open(digest)
    edits, checks = measured(intent.requests)
    ledger.record_candidate(
        lease,
        intent.id,
        digest=digest,
        path=digest,
        size_bytes=content.size_bytes,
        files=content.manifest["files"],
        metrics={"efficacy": 1.0},
        edits=edits,
        checks=checks,
    )
    return intent.id


def sync(
    ledger: Ledger,
    files: CheckpointFiles,
    world: World,
    number: int,
    *,
    verdict: str = "promote",
    holder: str = "test",
    model: str = MODEL,
) -> Mapping[str, int | None]:
    """Run a whole sync.

    Args:
        ledger: The ledger.
        files: The checkpoints.
        world: What stands in the knowledge base.
        number: The night.
        verdict: promote, reject or leave (end the run with a candidate).
        holder: Who runs it.
        model: The model.

    Returns:
        Keys of the run and the checkpoint.
    """
    ledger.ensure_model(model, "local", BASE)
    with ledger.writer(model, holder=holder) as lease:
        ledger.recover(lease, files)
        run = ledger.begin_run(lease, "sync", reference_time=night(number))
        ingest(ledger, lease, run, world, number)
        plan(ledger, lease, run)
        checkpoint = make_candidate(ledger, lease, run, files)
        if checkpoint is None:
            ledger.finish_run(lease, run, "nothing")
        elif verdict == "promote":
            ledger.promote(lease, checkpoint, reason="all gates passed")
            ledger.finish_run(lease, run, "succeeded", counters={"edits": 1})
        elif verdict == "reject":
            ledger.reject(lease, checkpoint, reason="recall too low")
            ledger.finish_run(lease, run, "rejected")
        else:
            ledger.finish_run(lease, run, "candidate")
    return {"run": run, "checkpoint": checkpoint}


def held(ledger: Ledger, model: str = MODEL) -> dict[tuple[str, str], str]:
    """What the model holds."""
    return {(r.subject, r.property): r.value for r in ledger.live_facts(ledger.model(model))}

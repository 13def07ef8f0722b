"""The ledger's own words: plain frozen records, no types of any other package.

`flows/translate.py` maps what kb and editor say onto these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

Json = Mapping[str, Any]
Source = tuple[str, int]
"""A statement's id and the item revision at which it was read."""

Pair = tuple[str, str]
"""(subject, property): the group of statements that is pulled and reviewed as one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A language model that the ledger speaks about.

    Attributes:
        id: Its key in the ledger.
        name: Its name, unique.
        base_ref: Where the base model came from.
        base_digest: Digest of the base model's weights.
        head: Key of the checkpoint that is live, None while the base itself is.
        head_digest: Digest of that checkpoint.
        epoch: The fencing epoch; each new writer raises it.
    """

    id: int
    name: str
    base_ref: str
    base_digest: str
    head: int | None
    head_digest: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one model, until somebody else takes it.

    Attributes:
        model: The model as it stood when the lease was taken.
        epoch: The epoch that every step is fenced with.
        holder: Who holds it, in its own words.
    """

    model: Model
    epoch: int
    holder: str


@dataclass(frozen=True, slots=True)
class EntityRow:
    """An item and what is known of it; None keeps what the ledger knows already.

    Attributes:
        id: `Q42`.
        label: Its label in `language`.
        language: The label's language.
        revision: The item's revision.
        modified_at: When the item itself last changed, in Wikidata.
        redirect_to: The item it was merged into.
        deleted: True if the item is gone.
    """

    id: str
    label: str | None = None
    language: str | None = None
    revision: int | None = None
    modified_at: datetime | None = None
    redirect_to: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A statement as it was read.

    Attributes:
        id: The statement's GUID, normalised.
        subject: Its item.
        property: Its property.
        value_kind: item, time, quantity, string, ...
        value: The value's canonical text.
        rank: preferred, normal or deprecated.
        revision: Revision of the item it was read at.
        content_hash: Digest of all that a change of should count, without the revision.
        qualifiers: Start, end, point in time and the rest, as the caller's JSON.
        reference_count: How many references that name a source stand behind it.
        valid_from: Start of validity in Wikidata, as text, if stated.
        valid_to: End of validity in Wikidata, as text, if stated.
    """

    id: str
    subject: str
    property: str
    value_kind: str
    value: str
    rank: str
    revision: int
    content_hash: str
    qualifiers: Json = field(default_factory=dict)
    reference_count: int = 0
    valid_from: str | None = None
    valid_to: str | None = None


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, in statements.

    Attributes:
        inserted: Seen for the first time, or again after a deletion.
        changed: Known with other content.
        deleted: Missing from a group that was pulled completely.
        unchanged: As known.
        stale: Older than what the ledger knows already, and therefore left out.
        touched: Groups marked for review, over all models.
    """

    inserted: int
    changed: int
    deleted: int
    unchanged: int
    stale: int
    touched: int


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A fact that the model holds now.

    Attributes:
        subject: Its item.
        property: Its relation.
        slot: "" for single-valued relations, else the value's canonical text.
        value_kind: Kind of the value.
        value: The value's canonical text.
        label: The text the model was taught (the target).
        op: insert, replace or suppress.
        subject_label: The subject's text in the prompts.
        prompts: The prompts that were edited.
        heldback: Prompts kept for checking.
        edit_id: The edit that made it.
        request_id: The request behind that edit.
        checkpoint_id: The checkpoint that holds it.
        checkpoint: That checkpoint's digest.
        held_since: When that checkpoint became live first.
    """

    subject: str
    property: str
    slot: str
    value_kind: str
    value: str
    label: str
    op: str
    subject_label: str
    prompts: tuple[str, ...]
    heldback: tuple[str, ...]
    edit_id: int
    request_id: int | None
    checkpoint_id: int
    checkpoint: str
    held_since: datetime


@dataclass(frozen=True, slots=True)
class PendingRow:
    """Something that was seen and held back.

    Attributes:
        id: Key of the quarantine row.
        subject: Its item.
        property: Its relation.
        slot: The fact's slot.
        kind: quarantine or conflict.
        reason: Why it is held back.
        value_kind: Kind of the value that waits, None for a retraction.
        value: The value that waits, None for a retraction.
        label: Its text.
        first_seen_at: Reference time of the first run that saw it.
        last_seen_at: Reference time of the last one.
        sightings: How many pulls saw it.
        previous_values: Values that waited here before and gave way, oldest first ("" for a retraction).
        releases_at: When the hold ends by itself, if it does.
        decision: approved or blocked, if a person has decided.
    """

    id: int
    subject: str
    property: str
    slot: str
    kind: str
    reason: str
    value_kind: str | None
    value: str | None
    label: str | None
    first_seen_at: datetime
    last_seen_at: datetime
    sightings: int
    previous_values: tuple[str, ...]
    releases_at: datetime | None
    decision: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """All that the plan step needs of one (subject, property).

    Attributes:
        subject: The item.
        property: The relation.
        entity: The item as known, with its modification date.
        statements: The statements that stand now.
        held: What the model holds for this group.
        pending: What is held back for this group.
        labels: The items among the values, as known.
    """

    subject: str
    property: str
    entity: EntityRow
    statements: tuple[StatementRow, ...]
    held: tuple[HeldRow, ...]
    pending: tuple[PendingRow, ...]
    labels: Mapping[str, EntityRow]


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What a plan decided about one fact.

    Attributes:
        kind: insert, replace, retract, suppress, unchanged, relabel, vacate, conflict or quarantine.
        subject: The item.
        property: The relation.
        slot: The fact's slot.
        reason: Why, in one sentence or word.
        old_value: What the model holds.
        old_label: Its text.
        new_value_kind: Kind of the new value.
        new_value: What it should hold, or what is held back.
        new_label: Its text.
        valid_from: When it became true in Wikidata, as text.
        valid_to: When it ended there, as text.
        flags: Remarks of the semantics.
        releases_at: When a held-back change releases by itself.
        sources: The statements behind it.
    """

    kind: str
    subject: str
    property: str
    slot: str = ""
    reason: str = ""
    old_value: str | None = None
    old_label: str | None = None
    new_value_kind: str | None = None
    new_value: str | None = None
    new_label: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    flags: tuple[str, ...] = ()
    releases_at: datetime | None = None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class EditRequestRow:
    """One edit that is owed to the model.

    Attributes:
        subject: The item.
        property: The relation.
        slot: The fact's slot.
        op: insert, replace, retract or suppress.
        subject_label: The subject's text in the prompts.
        target: The text to teach; "" for a retraction.
        prompts: The prompts to edit.
        heldback: Prompts kept for checking.
        value_kind: Kind of the new value.
        value: The new value, None for a retraction.
        old_value: What the model held.
        old_label: Its text.
        valid_from: When it became true in Wikidata, as text.
        valid_to: When it ended there, as text.
        template_digest: Digest of the templates the prompts came from.
        sources: The statements behind it, with their revisions: part of its identity.
        id: Key in the ledger; None before it is recorded.
        state: pending, claimed, applied, superseded, failed, rolled_back.
        attempts: How often it was tried and rejected.
        created_at: When it was recorded.
    """

    subject: str
    property: str
    slot: str
    op: str
    subject_label: str
    target: str
    prompts: tuple[str, ...]
    heldback: tuple[str, ...] = ()
    value_kind: str | None = None
    value: str | None = None
    old_value: str | None = None
    old_label: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    template_digest: str = ""
    sources: tuple[Source, ...] = ()
    id: int | None = None
    state: str = "pending"
    attempts: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What recording a plan did.

    Attributes:
        changes: Number of changes by kind.
        queued: New pending requests.
        known: Requests that were in the queue already.
        superseded: Pending requests that a newer wish replaced or withdrew.
        held_back: Quarantine rows opened.
        released: Quarantine rows resolved.
    """

    changes: Mapping[str, int]
    queued: int
    known: int
    superseded: int
    held_back: int
    released: int


@dataclass(frozen=True, slots=True)
class CheckpointIntent:
    """A checkpoint that is about to be made.

    Attributes:
        id: Its key in the ledger.
        parent: Key of its parent.
        parent_digest: Digest of its parent, None if it stands on the base.
        requests: The requests it claims, oldest first.
    """

    id: int
    parent: int | None
    parent_digest: str | None
    requests: tuple[EditRequestRow, ...]


@dataclass(frozen=True, slots=True)
class EditRow:
    """How one edit of a candidate came out.

    Attributes:
        subject: The item.
        property: The relation.
        slot: The fact's slot.
        status: `written`, or `failed` if the weights do not carry it.
        prompt: The prompt it was measured on.
        p_new_before: Probability of the new object before the edit, 0..1.
        p_old_before: Probability of the old object before.
        p_new_after: Probability of the new object after.
        p_old_after: Probability of the old object after.
        rank_old_before: Rank of the old object's first token among all tokens before; 1 is what greedy
            decoding says.
        rank_old_after: The same after.
        success: P(new) > P(old) after.
        exact: The greedy completion says the target.
        greedy: That completion.
        error: Why it failed.
    """

    subject: str
    property: str
    slot: str
    status: str = "written"
    prompt: str = ""
    p_new_before: float | None = None
    p_old_before: float | None = None
    p_new_after: float | None = None
    p_old_after: float | None = None
    rank_old_before: int | None = None
    rank_old_after: int | None = None
    success: bool | None = None
    exact: bool | None = None
    greedy: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One measured answer of a candidate.

    Attributes:
        probe: efficacy, paraphrase, neighbourhood, retention or retraction.
        passed: Whether it came out as it should.
        subject: The fact's item; None for a probe of no fact of ours.
        property: The fact's relation.
        slot: The fact's slot.
        index: Number among the probes of this kind for this fact.
        prompt: What was asked.
        expected: What should be said.
        got: What was said.
        p_new: Probability of the expected answer.
        p_old: Probability of the answer it competes with.
        rank_old: Rank of that answer's first token among all tokens.
    """

    probe: str
    passed: bool
    subject: str | None = None
    property: str | None = None
    slot: str = ""
    index: int = 0
    prompt: str = ""
    expected: str = ""
    got: str | None = None
    p_new: float | None = None
    p_old: float | None = None
    rank_old: int | None = None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint as the ledger knows it.

    Attributes:
        id: Its key in the ledger.
        digest: Digest of its content; None until it is a candidate.
        parent: Key of its parent, None for the first.
        parent_digest: Digest of its parent.
        run: The run that made it.
        state: building, candidate, promoted (the head), superseded (an ancestor of the head), rejected,
            rolled_back or abandoned.
        algorithm: Name of the editing algorithm.
        settings: Its settings.
        metrics: What the checks measured.
        from_base: True if its delta stands on the base model itself (a rebuild), not on its parent.
        edits: How many edits it carries.
        live_facts: How many facts are live with it as head.
        path: Folder of its files, relative to the checkpoints' root.
        size_bytes: Size of its files.
        files: Digest and size of each file.
        created_at: When it was begun.
        decided_at: When it was promoted, rejected or abandoned.
        reason: Why.
    """

    id: int
    digest: str | None
    parent: int | None
    parent_digest: str | None
    run: int
    state: str
    algorithm: str
    settings: Json
    metrics: Json
    from_base: bool
    edits: int
    live_facts: int | None
    path: str | None
    size_bytes: int | None
    files: Json
    created_at: datetime
    decided_at: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class SubjectStateRow:
    """Where the stored state of a live subject lies: in the newest checkpoint that rewrote it."""

    subject: str
    checkpoint_id: int
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a crash had left, and is now settled.

    Attributes:
        abandoned: Checkpoints that were being built.
        rejected: Candidates that nobody had decided about.
        kept: A candidate that waits for approval and was left alone.
        requeued: Requests that went back into the queue.
        crashed_runs: Runs that had never ended.
        orphans: Checkpoint folders and temporary folders that were removed.
    """

    abandoned: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    requeued: int = 0
    crashed_runs: tuple[int, ...] = ()
    orphans: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.abandoned or self.rejected or self.requeued or self.crashed_runs or self.orphans)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the ledger knows it; see the view `sync_runs`."""

    id: int
    kind: str
    state: str
    flow_run_id: str | None
    reference_time: datetime
    started_at: datetime
    finished_at: datetime | None
    counters: Json
    error: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """Where a model stands.

    Attributes:
        model: The model.
        head: Its live checkpoint.
        live_facts: How many facts are live.
        owed: Pending requests.
        held_back: Open quarantine rows.
        to_review: Groups marked for review.
        last_run: The newest run.
        last_success: The newest run that succeeded.
        cursors: What was read, by source.
        holder: Who holds, or held last, the writer's lock.
        open_checkpoint: A checkpoint that is being built or waits for approval.
    """

    model: Model
    head: CheckpointRow | None
    live_facts: int
    owed: int
    held_back: int
    to_review: int
    last_run: RunRow | None
    last_success: RunRow | None
    cursors: Mapping[str, datetime]
    holder: str | None
    open_checkpoint: CheckpointRow | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One edit of a subject's facts, oldest first; see the view `edit_history`."""

    subject: str
    property: str
    slot: str
    op: str
    old_label: str | None
    new_value: str | None
    new_label: str | None
    status: str
    p_new_before: float | None
    p_new_after: float | None
    p_old_after: float | None
    exact: bool | None
    checkpoint: str | None
    checkpoint_state: str
    decided_at: datetime | None
    live: bool
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a read-only query.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
        truncated: True if there were more rows than asked for.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool

"""A checkpoint from its intent to its decision, and how its edits came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from storage.records import Json
    from storage.records.planned import EditRequestRow


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
    """

    subject: str
    property: str
    slot: str
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
        decided_at: When it became a candidate, was promoted, rejected or abandoned.
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

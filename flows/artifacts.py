"""What a person looks at in the interface: tables, verdicts, progress. A failure here never fails a run."""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Any, ParamSpec

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from flows import drift as watch
from flows.planning import READING_ORDER
from flows.progress import TITLES, shown_by
from storage.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from editor.calibrate import Calibration
    from flows.planning import Plan
    from flows.workspace import Workspace
    from flows.writing import Candidate
    from kb.relations import Relations
    from kb.trust import Change
    from storage.records.runs import Model

P = ParamSpec("P")

log = logging.getLogger(__name__)

MOST_ROWS = 500
"""A table of more rows than this is cut; the ledger has all of them."""

STEP_S = 2.0
"""Progress is written at most this often."""

DIGITS = 4


def _never_fails(function: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if flow_run.id is None:
            return
        try:
            function(*args, **kwargs)
        except (PrefectException, httpx.HTTPError, LedgerError, OSError, ValueError, RuntimeError) as error:
            log.warning("%s could not be shown: %s", function.__name__, error)

    return run


@_never_fails
def plan(made: Plan, relations: Relations, *, dry: bool = False) -> None:
    """The changes table: what changed in Wikidata, what becomes of it, and why."""
    counts = ", ".join(f"{count} {kind}" for kind, count in made.counts.items()) or "nothing changed"
    changed = [change for change in made.changes if change.kind.value != "unchanged"]
    rows = changes_rows(made, changed[:MOST_ROWS], relations)
    cut = f" The first {MOST_ROWS} of {len(changed)} rows." if len(changed) > MOST_ROWS else ""
    burst = f" **Burst guard:** {'; '.join(made.burst.reasons)}." if made.burst.reasons else ""
    title = "What a run would do; nothing was written" if dry else "What changed, and what becomes of it"
    create_table_artifact(
        key="plan" if dry else "changes", table=rows, description=f"## {title}\n\n{counts}.{cut}{burst}"
    )


def changes_rows(made: Plan, changes: Sequence[Change], relations: Relations) -> list[dict[str, str]]:
    """Changes of a plan as a table's rows, the edits first."""
    order = {kind: number for number, kind in enumerate(READING_ORDER)}
    rows = []
    for change in sorted(changes, key=lambda one: (order[one.kind.value], one.property, one.subject)):
        old = change.old
        subject = made.labels.get(change.subject) or (old.subject_label if old else "")
        rows.append(
            {
                "change": change.kind.value,
                "subject": f"{subject} ({change.subject})" if subject else change.subject,
                "relation": f"{relations[change.property].name} ({change.property})",
                "from": old.label if old else "",
                "to": made.text(change),
                "why": change.reason,
            }
        )
    return rows


@_never_fails
def check(candidate: Candidate, *, number: int = 1) -> None:
    """Recall of every edited fact before and after, and the gates' verdicts."""
    suffix = "" if number == 1 else f"-{number}"
    create_table_artifact(
        key=f"recall{suffix}",
        table=recall_rows(candidate)[:MOST_ROWS],
        description=f"## Recall before and after\n\nCheckpoint `{candidate.digest[:12]}`.",
    )
    create_table_artifact(
        key=f"gates{suffix}",
        table=gate_rows(candidate),
        description="## Gates\n\n"
        + ("Every gate passed." if candidate.passed else f"**Rejected:** {candidate.failures}."),
    )


def recall_rows(candidate: Candidate) -> list[dict[str, Any]]:
    """What was asked of each edited fact, and what the model said before and says now."""
    before = {result.fact_id: result for result in candidate.before}
    asked = {fact.fact_id: fact for fact in candidate.exam.tonight}
    rows = [
        {
            "prompt": now.prompts[0].prompt,
            "should say": asked[now.fact_id].target,
            "said before": before[now.fact_id].greedy,
            "says now": now.greedy,
            "P(new) before": _rounded(before[now.fact_id].p_new),
            "P(new) after": _rounded(now.p_new),
            "P(old) after": _rounded(now.p_old),
            "word for word": now.exact,
        }
        for now in candidate.marks.tonight
    ]
    taken_out = [
        {
            "prompt": now.prompts[0].prompt,
            "should say": f"(taken out; the base model: {candidate.exam.beliefs[now.fact_id]})",
            "said before": before[now.fact_id].greedy,
            "says now": now.greedy,
            "P(new) before": _rounded(before[now.fact_id].p_old),
            "P(new) after": _rounded(now.p_old),
            "P(old) after": _rounded(now.p_new),
            "word for word": None,
        }
        for now in candidate.marks.retracted
    ]
    return rows + taken_out


def gate_rows(candidate: Candidate) -> list[dict[str, Any]]:
    """Each gate with its number and bound."""
    return [
        {
            "gate": gate.name,
            "measured": _rounded(gate.value),
            "bound": gate.threshold,
            "passed": gate.passed,
            "protects": gate.protects,
        }
        for gate in candidate.gates
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


CHECKPOINT = """\
## Checkpoint {digest} is {state}

{why}

| | |
|---|---|
| model | `{model}` |
| stands on | `{parent}` |
| files | `{folder}` |
| ledger | `{ledger}` |

What was edited, with the statements and revisions behind it (`factsync sql`):

```sql
SELECT subject_label, property, operation, old_target, new_target, p_new_before, p_new_after
FROM edit_history WHERE checkpoint = '{digest}';

SELECT * FROM provenance WHERE checkpoint = '{digest}';
```

{next}
"""


@_never_fails
def checkpoint(
    ws: Workspace, model: Model, candidate: Candidate, state: str, why: str, *, number: int = 1
) -> None:
    """Where the checkpoint lies, how to look into it, and what a person can do next."""
    line = ws.ledger.lineage(model, candidate.id)
    todo = {
        "candidate": "Run the deployment `promote` to make it live, or `reject` to turn it down "
        "(`factsync promote`, `factsync reject`).",
        "promoted": "A folder that transformers loads: "
        f"`factsync checkpoint materialize {candidate.digest[:12]} OUT`.",
    }
    create_markdown_artifact(
        key="checkpoint" if number == 1 else f"checkpoint-{number}",
        markdown=CHECKPOINT.format(
            digest=candidate.digest,
            state=state,
            why=why,
            model=model.name,
            parent="the base model" if candidate.from_base else str(line[-2].digest)[:12],
            folder=ws.files.path(candidate.digest),
            ledger=ws.ledger.url.render_as_string(hide_password=True),
            next=todo.get(state, "What it carried of the queue stays owed; the next run tries it again."),
        ),
    )


@_never_fails
def drift(ws: Workspace, model: Model) -> None:
    """The drift watch as a picture: recall by relation and by night, edited norm, perplexity."""
    found = watch.read(ws, model)
    image = base64.b64encode(watch.picture(found)).decode()
    create_markdown_artifact(
        key="drift",
        markdown="## Drift watch\n\nThe views `drift`, `cohort_recall` and `recall_by_relation` have the "
        "numbers.\n\n![Recall by relation and by checkpoint, edited norm, perplexity]"
        f"(data:image/png;base64,{image})",
    )


@_never_fails
def calibration(found: Calibration, picture: str) -> None:
    """The heat map of the trace, and every trial.

    Args:
        found: settings and evidence.
        picture: a PNG in base64.
    """
    rows = "".join(
        f"| {trial.moment_weight:.0f} | {trial.learning_rate:g} | {trial.exact:.0%} | {trial.heldback:.0%} "
        f"| {trial.perplexity_ratio - 1:+.1%} | {trial.score:.3f} |\n"
        for trial in found.trials
    )
    create_markdown_artifact(
        key="calibration",
        markdown=f"## Calibration\n\nBlocks {found.settings.layers[0]} to {found.settings.layers[-1]}.\n\n"
        f"![Where the model recalls facts](data:image/png;base64,{picture})\n\n"
        f"| λ | rate | exact | held back | perplexity | score |\n|---|---|---|---|---|---|\n{rows}",
    )


@_never_fails
def evaluation(table: str) -> None:
    """The table of methods, in Markdown."""
    create_markdown_artifact(key="evaluation", markdown=table)


@_never_fails
def decided(model_name: str, digest: str, state: str, why: str) -> None:
    """Send the event that automations wait for: `factsync.promoted`, `.rejected`, `.candidate` or so."""
    if get_current_settings().api.url is None:
        return  # no server stays to receive it
    emit_event(
        event=f"factsync.{state}",
        resource={
            "prefect.resource.id": f"factsync.model.{model_name}",
            "prefect.resource.name": model_name,
            "factsync.checkpoint": digest,
        },
        payload={"checkpoint": digest, "reason": why},
    )


@contextlib.contextmanager
def shown_in_the_interface() -> Iterator[None]:
    """Show steps as log lines and progress as artifacts, for runs that nobody watches on a terminal."""
    meter = _Meter()
    with shown_by(meter.on_progress, meter.on_step):
        try:
            yield
        finally:
            meter.flush()


class _Meter:
    """One progress artifact a stage, written at most every `STEP_S`, and once more when the stage is left."""

    def __init__(self) -> None:
        self._ids: dict[str, UUID] = {}
        self._done: dict[str, int] = {}
        self._now: tuple[str, int, int] | None = None
        self._written: tuple[str, int, int] | None = None
        self._next = 0.0

    def on_step(self, text: str) -> None:
        log.info("%s", text[:1].upper() + text[1:])

    def on_progress(self, stage: str, done: int, total: int) -> None:
        if self._now is not None and self._now[0] != stage:
            self.flush()
        if done < self._done.get(stage, 0):
            self._ids.pop(stage, None)  # the same stage of the next batch
        self._done[stage] = done
        self._now = (stage, done, total)
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + STEP_S
            self.flush()

    def flush(self) -> None:
        """Write where the stage stands, if that is news."""
        if self._now is None or self._now == self._written:
            return
        stage, done, total = self._written = self._now
        text = f"{TITLES.get(stage, stage)}: {done} of {total}"
        self._write(stage, 100.0 * done / max(total, 1), text)

    def _write(self, stage: str, percent: float, text: str) -> None:
        @_never_fails
        def progress() -> None:
            known = self._ids.get(stage)
            if known is None:
                made = create_progress_artifact(progress=percent, key=f"progress-{stage}", description=text)
                self._ids[stage] = made  # type: ignore[assignment]
            else:
                update_progress_artifact(known, progress=percent, description=text)

        progress()
        log.info("%s", text)

"""What the command line shows: bars for long work, tables for results."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from flows.planning import READING_ORDER
from flows.progress import TITLES, shown_by

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from rich.console import JustifyMethod

    from editor.calibrate import Calibration
    from editor.recall import RecallResult
    from flows.planning import Plan
    from flows.settings import Settings
    from flows.sync import Night
    from flows.writing import Candidate
    from kb.trust import Change


def console() -> Console:
    """Where results go."""
    return Console(highlight=False)


def print_json(value: object) -> None:
    """Print a result for programs."""
    console().print_json(json.dumps(value, default=str))


WIDE = 120
"""From how many characters a line on, a table shows all its columns."""


def table(
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    title: str | None = None,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    wide: Collection[str] = (),
) -> Table:
    """A table of plain text: no square bracket of a label or an answer is taken for a colour.

    Args:
        columns: headings.
        rows: cells; None is an en dash, and `Text` keeps its colours.
        title: above it.
        right: headings of columns that are aligned to the right.
        whole: headings of columns whose text is never broken, such as a digest to copy.
        wide: headings of columns that only a wide console has room for.
    """
    left_out = [] if console().width >= WIDE else [column for column in columns if column in wide]
    made = Table(title=title, title_justify="left")
    if left_out:
        made.caption = f"A wider terminal, or --json, shows {', '.join(left_out)} too."
    for column in columns:
        if column not in left_out:
            justify: JustifyMethod = "right" if column in right else "left"
            made.add_column(column, overflow="fold", justify=justify, no_wrap=column in whole)
    for row in rows:
        shown = (cell for column, cell in zip(columns, row, strict=True) if column not in left_out)
        cells = ("–" if cell is None else cell for cell in shown)
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    return made


def ledger_url(settings: Settings) -> str:
    """The ledger's URL for people to read: without its password."""
    from storage.database import parse_url

    return parse_url(settings.resolved_ledger_url).render_as_string(hide_password=True)


def answers(prompt: str, base: str, live: str) -> None:
    """What both models say to a prompt."""
    out = console()
    out.print(Text(prompt, "bold"))
    out.print(Text.assemble("  base  ", base))
    out.print(Text.assemble("  live  ", (live, "green")))


MEASURES: tuple[tuple[str, str | None, str, str | None, float | None], ...] = (
    ("efficacy before → after, P(new) > P(old)", "efficacy_before", "efficacy", "efficacy", 0.98),
    ("exact recall before → after", "exact_before", "exact", "exact", 0.80),
    ("exact, and the name ends there", None, "whole", None, None),
    ("held-back phrasings: success", None, "heldback", "heldback", 0.85),
    ("held-back phrasings: exact", None, "heldback_exact", None, None),
    ("older facts still preferred", None, "retention", "retention", 0.97),
    ("older facts still exact", None, "retention_exact", None, None),
    ("neighbours that kept their own answer", None, "neighbours", "neighbours", 0.92),
    ("neighbour answers with the same first word", None, "neighbours_same", None, 0.92),
    ("perplexity rise since the base model", None, "perplexity_rise", "perplexity", 0.08),
    ("retracted objects no longer preferred", None, "retracted", None, None),
    ("distance of the edited weights", None, "norm", None, None),
)
"""What is shown of a night: title, metric before, metric after, its gate, the bundled model's aim."""


@contextlib.contextmanager
def bars() -> Iterator[None]:
    """Show how far the steps inside the block have come: bars on a terminal, a line a step elsewhere."""
    out = Console(stderr=True, highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                title = TITLES.get(stage, stage)
                tasks[stage] = progress.add_task(title, total=total)
                if not out.is_terminal:
                    out.print(f"  … {title}")
            progress.update(tasks[stage], completed=done, total=total, visible=done < total)

        def on_step(text: str) -> None:
            while tasks:
                progress.remove_task(tasks.popitem()[1])
            out.print(f"[dim]•[/] {text}")

        with shown_by(on_progress, on_step):
            yield


def changes_table(plan: Plan, *, title: str, kinds: Sequence[str] = READING_ORDER[:-1]) -> Table:
    """What changed in Wikidata, and what becomes of it."""
    order = {kind: number for number, kind in enumerate(READING_ORDER)}
    changes = sorted(plan.changes, key=lambda one: (order[one.kind.value], one.property, one.subject))
    rows = (_change_cells(plan, one) for one in changes if one.kind.value in kinds)
    return table(("change", "subject", "relation", "from", "to", "why"), rows, title=title)


def _change_cells(plan: Plan, change: Change) -> tuple[str, ...]:
    return (
        change.kind.value,
        plan.labels.get(change.subject) or (change.old.subject_label if change.old else change.subject),
        change.property,
        change.old.label if change.old else "",
        plan.text(change),
        change.reason,
    )


def edits_table(edits: Iterable[Mapping[str, Any]], *, title: str) -> Table:
    """Edits that were made, or are owed."""
    shown = ("kind", "subject_label", "property", "old_label", "new_label")
    rows = ([one[name] or "" for name in shown] for one in edits)
    return table(("change", "subject", "relation", "from", "to"), rows, title=title)


def candidate_table(candidate: Candidate, *, title: str) -> Table:
    """Each edited fact: what the model said before and says now."""
    before = {result.fact_id: result for result in candidate.before}
    asked = {fact.fact_id: fact for fact in candidate.exam.tonight}
    numbers = ("P(new) before", "after", "P(old) after")
    return table(
        ("prompt", "should say", "says now", *numbers),
        (
            (
                result.prompts[0].prompt,
                asked[result.fact_id].target,
                _marked(result, asked[result.fact_id].target),
                f"{before[result.fact_id].p_new:.3f}",
                f"{result.p_new:.3f}",
                "" if result.p_old is None else f"{result.p_old:.3f}",
            )
            for result in candidate.marks.tonight
        ),
        title=title,
        right=numbers,
    )


def _marked(result: RecallResult, target: str) -> Text:
    """What is said, and whether it is right word for word, right at least, or wrong."""
    mark = ("✗", "red")
    if result.prompts[0].whole:
        mark = ("✓", "green")
    elif result.success:
        mark = ("~", "yellow")
    return Text.assemble(mark, " ", _said(result.greedy, target))


def _said(answer: str, target: str) -> str:
    """The first words of an answer, a little longer than the target."""
    words = answer.split()
    return " ".join(words[: len(target.split()) + 2])


def metrics_table(rows: Iterable[tuple[str, Candidate | None]], *, title: str) -> Table:
    """The numbers of one or several nights beside their bounds."""
    nights = list(rows)
    numbers = (*(name for name, _ in nights), "gate", "aim")
    lines = (
        (
            measured,
            *(Text.from_markup(_cell(candidate, before, after, gate, aim)) for _, candidate in nights),
            _bound(nights, gate),
            "" if aim is None else _bounded(gate, aim),
        )
        for measured, before, after, gate, aim in MEASURES
    )
    return table(("measured", *numbers), lines, title=title, right=numbers)


def trials_table(found: Calibration) -> Table:
    """What a calibration tried; the chosen trial in bold."""
    columns = ("λ", "rate", "exact", "held back", "perplexity", "score")
    rows = (
        [
            Text(cell, "bold" if trial == found.best else "")
            for cell in (
                f"{trial.moment_weight:.0f}",
                f"{trial.learning_rate:g}",
                f"{trial.exact:.0%}",
                f"{trial.heldback:.0%}",
                f"{trial.perplexity_ratio - 1:+.1%}",
                f"{trial.score:.3f}",
            )
        ]
        for trial in found.trials
    )
    return table(columns, rows, title="What was tried", right=columns)


def _cell(
    candidate: Candidate | None, before: str | None, after: str, gate: str | None, aim: float | None
) -> str:
    if candidate is None:
        return "–"
    measured = getattr(candidate.metrics, after)
    text = _percent(measured)
    if before is not None:
        text = f"{_percent(getattr(candidate.metrics, before))} → {text}"
    if any(one.name == gate and not one.passed for one in candidate.gates):
        return f"[red]{text}[/]"
    if measured is None or aim is None:
        return text
    short = measured > aim if gate == "perplexity" else measured < aim
    return f"[yellow]{text}, short[/]" if short else text


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _bound(nights: Sequence[tuple[str, Candidate | None]], gate: str | None) -> str:
    gates = next((candidate.gates for _, candidate in nights if candidate is not None), ())
    found = next((one for one in gates if one.name == gate), None)
    if found is None:
        return ""
    return _bounded(gate, found.threshold)


def _bounded(gate: str | None, bound: float) -> str:
    return f"{'≤' if gate == 'perplexity' else '≥'} {100 * bound:.0f} %"


def night_summary(night: Night) -> str:
    """One line for a night."""
    if night.waiting:
        return f"{night.news}. {night.waiting}{night.beside}"
    if night.held:
        return f"{night.news}. Held by the burst guard: {night.held}."
    if night.candidate is None:
        return f"{night.news}. Nothing to edit."
    verdict = "promoted" if night.promoted else f"rejected ({night.candidate.failures})"
    return f"{night.news}. Checkpoint {night.candidate.digest[:12]} {verdict}.{night.beside}"

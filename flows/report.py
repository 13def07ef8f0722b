"""The pages of an evaluation: one HTML file that needs nothing else, Markdown, raw rows as Parquet."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from editor.methods import METHODS
from flows import curves
from flows.experiments import ANSWERS, SEPARATOR, WRITINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flows.evaluate import Evaluation

COLUMNS = (
    ("score", "score", 100.0),
    ("efficacy", "efficacy", 100.0),
    ("efficacy_exact", "exact", 100.0),
    ("efficacy_greedy", "said", 100.0),
    ("paraphrase", "paraphrase", 100.0),
    ("paraphrase_exact", "exact", 100.0),
    ("clean", "clean paraphrase", 100.0),
    ("clean_exact", "exact", 100.0),
    ("neighbourhood", "neighbourhood", 100.0),
    ("portability_accuracy", "second hop", 100.0),
    ("entropy", "GE", 1.0),
    ("reference", "RS", 1.0),
    ("perplexity", "perplexity", 1.0),
    ("perplexity_rise", "rise", 100.0),
    ("capability", "everyday", 100.0),
    ("cpu_s_per_edit", "CPU s an edit", 1.0),
)
"""What the table shows: metric, heading, factor."""

LEFT_OUT = {
    "KE": "De Cao et al. 2021, a hypernetwork that MEND builds on and surpasses in its paper",
    "SERAC": "Mitchell et al. 2022, where a second model answers and no weight is edited; "
    "“fact in the prompt” stands for its kind",
}

NOTES = (
    "Shares in percent. Efficacy, paraphrase and neighbourhood: share of prompts where the right object is "
    "likelier than the wrong one (for records without a second object: share of its tokens that are argmax). "
    "Exact: every token is argmax under teacher forcing. Said: free greedy decoding begins with the object. "
    "Score: harmonic mean of efficacy, paraphrase and neighbourhood. GE: generation entropy. RS: reference "
    "score. Second hop: tokens of what follows from the fact. Everyday: forty simple questions."
)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;font-size:13px;margin:1rem 0}th,td{padding:.25rem .6rem;text-align:right;
border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}caption{text-align:left;
font-weight:600}svg{max-width:100%;height:auto}code{font-size:12px}details{margin:1rem 0}
@media(prefers-color-scheme:dark){body{background:#fff}}
"""


@dataclass(frozen=True, slots=True)
class Pages:
    """Where an evaluation was written."""

    html: Path
    markdown: Path
    results: Path
    answers: Path
    writings: Path


def write(evaluation: Evaluation, out: Path) -> Pages:
    """Write all pages.

    Args:
        evaluation: what was found.
        out: the folder.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages = Pages(
        out / "report.html",
        out / "summary.md",
        out / "results.json",
        out / "answers.parquet",
        out / "writings.parquet",
    )
    for path, kind, schema in (
        (pages.answers, "answers", ANSWERS),
        (pages.writings, "writings", WRITINGS),
    ):
        tables = [table for folder in evaluation.folders for table in folder.tables(kind)]
        pq.write_table(pa.concat_tables([schema.empty_table(), *tables]), path)
    pages.results.write_text(json.dumps(as_json(evaluation), indent=1, ensure_ascii=False) + "\n", "utf-8")
    pages.markdown.write_text(markdown(evaluation), "utf-8")
    pages.html.write_text(page(evaluation), "utf-8")
    return pages


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything but the raw rows as plain data."""
    return {
        "about": evaluation.about,
        "skipped": list(evaluation.skipped),
        "results": list(evaluation.results),
    }


def rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the table: one row an experiment, columns that were measured."""
    results = evaluation.results
    shown = [column for column in COLUMNS if any(_value(one, column[0]) is not None for one in results)]
    headings = ["method", "edits", *(heading for _, heading, _ in shown)]
    cells = [
        [_name(one), _edits(one), *(_cell(_value(one, name), factor) for name, _, factor in shown)]
        for one in results
    ]
    return headings, cells


def markdown(evaluation: Evaluation) -> str:
    """Return the summary for a Prefect artifact or a pull request."""
    headings, cells = rows(evaluation)
    about = evaluation.about
    origin = (
        f"Data `{about['data_digest'][:12]}`, model `{about['model_digest'][:12]}`, seed {about['seed']}, "
        f"{_versions(about)}, {about['device']}. {about['skipped']} of "
        f"{about['records'] + about['skipped']} records left out."
    )
    lines = [
        f"## {about['data']} on {about['model']}",
        "",
        f"| {' | '.join(headings)} |",
        f"|---|{'---:|' * (len(headings) - 1)}",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in cells),
        "",
        NOTES,
        "",
        origin,
        "",
    ]
    return "\n".join(lines)


def page(evaluation: Evaluation) -> str:
    """Return the HTML report."""
    results, about = evaluation.results, evaluation.about
    pictures = (
        ("Against the number of edits", curves.against_edits(_whole(results))),
        ("Batch after batch", curves.over_batches(results)),
        ("Mixtures of relations", curves.mixtures(results)),
        ("Efficacy by relation", curves.relation_bars(_whole(results), "efficacy")),
        ("Neighbourhood by relation", curves.relation_bars(_whole(results), "neighbourhood")),
    )
    title = html.escape(f"{about['data']} on {about['model']}")
    body = [
        f"<h1>{title}</h1>",
        _table(*rows(evaluation)),
        f"<p>{html.escape(NOTES)}</p>",
        *(f"<h2>{heading}</h2>{picture}" for heading, picture in pictures if picture),
        "<h2>Methods</h2>",
        _table(["method", "source"], [[entry.title, entry.source] for entry in _methods(results)]),
        "<p>Left out: "
        + "; ".join(html.escape(f"{name} ({why})") for name, why in LEFT_OUT.items())
        + ".</p>",
        "<h2>What the numbers depend on</h2>",
        _table(["", ""], [[key, _plain(value)] for key, value in about.items()]),
        _skipped(evaluation.skipped),
        "<h2>By relation</h2>",
        *(_relations(one) for one in results if one["method"] != "none"),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _whole(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave single relations of a mixture out of the other pictures."""
    mixed = [one for one in results if SEPARATOR in one["relations"]]
    return mixed or list(results)


def _methods(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [METHODS[name] for name in dict.fromkeys(one["method"] for one in results)]


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _relations(result: Mapping[str, Any]) -> str:
    names = ("efficacy", "efficacy_exact", "paraphrase", "neighbourhood", "score")
    cells = [
        [relation, *(_cell(found[name], 100.0) for name in names)]
        for relation, found in result["by_relation"].items()
    ]
    summary = html.escape(f"{_name(result)}, {_edits(result)} edits")
    return f"<details><summary>{summary}</summary>{_table(['relation', *names], cells)}</details>"


def _skipped(skipped: Sequence[str]) -> str:
    if not skipped:
        return "<p>No record was left out.</p>"
    items = "".join(f"<li>{html.escape(text)}</li>" for text in skipped)
    return f"<details><summary>{len(skipped)} records were left out</summary><ul>{items}</ul></details>"


def _name(result: Mapping[str, Any]) -> str:
    relations = f" ({result['relations']})" if result["relations"] else ""
    return f"{result['title']}{relations}"


def _edits(result: Mapping[str, Any]) -> str:
    count, batches = result["edits"], result["batches"]
    return str(count) if batches == 1 else f"{count} in {batches}"


def _value(result: Mapping[str, Any], name: str) -> float | None:
    value: float | None = result[name] if name in result else result["metrics"].get(name)
    return value


def _cell(value: float | None, factor: float) -> str:
    if value is None:
        return ""
    return f"{value * factor:.1f}" if factor > 1 else f"{value:.2f}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _versions(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in about["versions"].items())

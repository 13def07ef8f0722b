"""What `benchmarks.nights` found: tables in Markdown, and pictures."""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Found = Mapping[str, Any]

TITLES = (
    "method", "edits", "first exact", "middle", "latest", "all exact", "paraphrase", "neighbourhood",
    "perplexity", "norm", "s/edit",
)  # fmt: skip
SPAN = 3
"""Nights whose median stands for an early or a late one: one night's seconds wobble."""

_BESIDE = 3
"""Panels in a line of a picture."""

WIDE = 8
"""A panel whose largest value is so many times its least, shares apart, is drawn on a logarithmic scale."""


def show(out: Path) -> str:
    """Draw every picture into the folder and return every table.

    Args:
        out: folder of the rows.
    """
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-*.json"))}
    parts = [
        _batches(
            {name.removeprefix("batches-"): one for name, one in found.items() if "batches" in name}, out
        ),
        *(_nights(name, one, out) for name, one in found.items() if name.startswith("nights-")),
        *(_subjects(name, one) for name, one in found.items() if name.startswith("subjects-")),
    ]
    return "\n\n".join(part for part in parts if part)


def cost_ratio(rows: Sequence[Found]) -> float | None:
    """Seconds an edit of the last nights to those of the early ones; None while there are too few.

    Night one is left out: it has nothing to protect.
    """
    if len(rows) < 2 * SPAN + 1:
        return None
    early, late = rows[1 : 1 + SPAN], rows[-SPAN:]
    first, last = (median(float(row["s_per_edit"]) for row in part) for part in (early, late))
    return last / first


def _batches(found: Mapping[str, Found], out: Path) -> str:
    if not found:
        return ""
    lines = [f"| {' | '.join(TITLES)} |", f"|{'---|' * len(TITLES)}"]
    for name, one in found.items():
        if not one["rows"]:
            continue
        row = one["rows"][-1]
        end = row.get("all", {})
        cells = [
            *(_percent(row[cohort].get("efficacy_exact")) for cohort in ("first", "middle", "latest")),
            _percent(end.get("efficacy_exact")),
            _percent(end.get("paraphrase", end.get("clean"))),
            _percent(end.get("neighbourhood")),
            f"{row['perplexity']:.2f}",
            f"{row['norm']:.3f}",
            f"{median(one['s_per_edit'] for one in one['rows']):.2f}",
        ]
        lines.append(f"| {name} | {row['edits']} | {' | '.join(cells)} |")
    panels = (
        ("first batch, exact", lambda row: row["first"].get("efficacy_exact")),
        ("its paraphrases, exact", lambda row: row["first"].get("paraphrase_exact")),
        ("latest batch, exact", lambda row: row["latest"].get("efficacy_exact")),
        ("perplexity", lambda row: row["perplexity"]),
        ("distance of the weights", lambda row: row["norm"]),
        ("CPU seconds an edit", lambda row: row["s_per_edit"]),
    )
    _draw(out / "batches.png", {name: one["rows"] for name, one in found.items()}, "edits", panels)
    return "\n".join(lines)


def _nights(name: str, found: Found, out: Path) -> str:
    rows, end = found["rows"], found.get("end", {})
    panels = (
        ("tonight's facts, exact", lambda row: row["exact"]),
        ("perplexity", lambda row: row["perplexity"]),
        ("CPU seconds an edit", lambda row: row["s_per_edit"]),
    )
    _draw(out / f"{name}.png", {name: rows}, "night", panels)
    ratio = cost_ratio(rows)
    lines = [f"**{name}**: {len(rows)} nights, late to early cost {'-' if ratio is None else f'{ratio:.2f}'}"]
    lines += [
        f"- rebuilt after night {row['night']}: {again['refined']} of {again['live']} refined in "
        f"{again['seconds']:.0f} CPU seconds; exact {_percent(again['before']['exact'])} before, "
        f"{_percent(again['after']['exact'])} after"
        for row in rows
        if (again := row.get("rebuilt"))
    ]
    lines += [
        f"- {part}: " + ", ".join(f"{key} {_percent(value)}" for key, value in end[part].items())
        for part in ("all", "oldest", "newest")
        if part in end
    ]
    if "superseded_preferred" in end:
        lines.append(f"- superseded objects preferred: {_percent(end['superseded_preferred'])}")
    if "rebuild" in end:
        again = end["rebuild"]
        lines.append(
            f"- rebuilt in {again['seconds']:.1f} CPU seconds, {_percent(again['share_of_edits'])} of the "
            f"edits': exact {_percent(again['all']['exact'])}, perplexity {again['perplexity']:.2f} "
            f"(nights: {rows[-1]['perplexity']:.2f})"
        )
    return "\n".join(lines)


def _subjects(name: str, found: Found) -> str:
    lines = [
        f"**{name}**",
        "",
        "| unit | success | exact | held back | perplexity | s/edit |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['unit']} | {_percent(row['success'])} | {_percent(row['exact'])} "
        f"| {_percent(row['heldback'])} | {row['perplexity']:.2f} | {row['s_per_edit']:.2f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def _draw(path: Path, lines: Mapping[str, Sequence[Found]], over: str, panels: Sequence[Any]) -> None:
    with mpl.rc_context({"svg.hashsalt": "factsync"}):
        high = -(-len(panels) // _BESIDE)
        figure = Figure(figsize=(11, 3.2 * high), layout="constrained")
        for number, (title, value) in enumerate(panels):
            axes = figure.add_subplot(high, _BESIDE, number + 1)
            for name, rows in lines.items():
                points = [(row[over], value(row)) for row in rows if value(row) is not None]
                axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            reached = [y for line in axes.lines for y in line.get_ydata()]
            if reached and min(reached) > 1.0 and max(reached) > WIDE * min(reached):
                axes.set_yscale("log")
            axes.set_title(title)
            axes.set_xlabel(over)
            if number == 0:
                axes.legend(fontsize="small")
        figure.savefig(path, dpi=120)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"

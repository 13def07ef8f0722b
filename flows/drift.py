"""The drift watch: how what the model knows and how it writes develop over the nights, as one picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from flows.workspace import Workspace
    from storage.records.runs import Model

MOST_RELATIONS = 10
MOST_COHORTS = 10

NIGHTS = """
SELECT position, perplexity, perplexity_base, norm, retention, neighbours
FROM drift WHERE model = :model ORDER BY position
"""
RELATIONS = """
SELECT property, position, 1.0 * SUM(passed) / SUM(checks) AS share, SUM(checks) AS checks
FROM recall_by_relation
WHERE model = :model AND probe IN ('efficacy', 'retention') AND checkpoint_state IN ('promoted', 'superseded')
GROUP BY property, position ORDER BY property, position
"""
COHORTS = """
SELECT cohort, position, 1.0 * passed / checks AS share, checks
FROM cohort_recall WHERE model = :model ORDER BY cohort, position
"""


@dataclass(frozen=True, slots=True)
class Drift:
    """What the views say of one model.

    Attributes:
        nights: one row a checkpoint of the lineage.
        relations: recall of a relation in a checkpoint's check.
        cohorts: recall, in a checkpoint's check, of facts that an earlier one taught.
    """

    nights: tuple[dict[str, Any], ...]
    relations: tuple[dict[str, Any], ...]
    cohorts: tuple[dict[str, Any], ...]


def read(ws: Workspace, model: Model) -> Drift:
    """Ask the ledger's views."""
    asked = (ws.ledger.query(sql, {"model": model.name}, limit=None) for sql in (NIGHTS, RELATIONS, COHORTS))
    return Drift(*(tuple(found.dicts) for found in asked))


def picture(drift: Drift) -> bytes:
    """Draw recall by relation, retention by cohort, edited norm and perplexity, as PNG."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    ((recall, cohorts), (norm, perplexity)) = figure.subplots(2, 2)
    _lines(recall, drift.relations, "property", MOST_RELATIONS)
    _titled(recall, "recall by relation", share=True)
    _lines(cohorts, drift.cohorts, "cohort", MOST_COHORTS)
    _titled(cohorts, "recall by the checkpoint that taught", share=True)
    _values(norm, drift.nights, "norm", "edited weights")
    _titled(norm, "largest change of an edited weight, relative")
    _values(perplexity, drift.nights, "perplexity", "now")
    _values(perplexity, drift.nights, "perplexity_base", "base model")
    _titled(perplexity, "perplexity")
    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target)  # type: ignore[no-untyped-call]
    return target.getvalue()


def _lines(axes: Axes, rows: Sequence[dict[str, Any]], name: str, most: int) -> None:
    """Draw one line a group, those with the most checks."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    largest = sorted(groups, key=lambda key: -sum(row["checks"] for row in groups[key]))[:most]
    for key in sorted(largest):
        _plot(axes, ((row["position"], row["share"]) for row in groups[key]), str(key))


def _values(axes: Axes, rows: Sequence[dict[str, Any]], name: str, label: str) -> None:
    _plot(axes, ((row["position"], row[name]) for row in rows if row[name] is not None), label)


def _plot(axes: Axes, points: Iterable[tuple[float, float]], label: str) -> None:
    found = list(points)
    axes.plot([x for x, _ in found], [float(y) for _, y in found], marker="o", markersize=3, label=label)


def _titled(axes: Axes, title: str, *, share: bool = False) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("position on the lineage", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if share:
        axes.set_ylim(-0.02, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)

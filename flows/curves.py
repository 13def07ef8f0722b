"""The pictures of an evaluation, drawn by matplotlib as SVG that stands in the page itself."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from flows.experiments import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

CURVES = (
    ("score", "score"),
    ("efficacy", "efficacy"),
    ("paraphrase", "paraphrase"),
    ("clean", "clean paraphrase"),
    ("neighbourhood", "neighbourhood"),
    ("efficacy_greedy", "said word for word"),
    ("paraphrase_greedy", "paraphrase, word for word"),
    ("portability_accuracy", "second hop, tokens right"),
    ("entropy", "generation entropy"),
    ("reference", "reference score"),
    ("perplexity_rise", "rise of perplexity"),
    ("capability", "everyday questions"),
)
MOST_RELATIONS = 15
_STYLES = ("-", "--", ":", "-.")


def against_edits(results: Sequence[Mapping[str, Any]]) -> str:
    """Draw every metric against the number of edits, one line a method."""
    drawn = [(name, title) for name, title in CURVES if _measured(results, name)]
    figure = Figure(figsize=(11, 2.9 * -(-len(drawn) // 3)), layout="constrained")
    for number, (name, title) in enumerate(drawn):
        axes = figure.add_subplot(-(-len(drawn) // 3), 3, number + 1)
        for place, (method, own) in enumerate(_by_method(results).items()):
            points = [(one["edits"], one["metrics"][name]) for one in own if one["metrics"][name] is not None]
            if points:
                _line(axes, sorted(points), method, place)
        _logarithmic(axes, {one["edits"] for one in results})
        _label(axes, title, "edits")
    _legend(figure)
    return svg(figure, "edits")


def over_batches(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw what becomes of the first batch, of the latest and of perplexity, batch after batch."""
    long = [one for one in results if one["batches"] > 1]
    if not long:
        return None
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = (
        ("first batch, word for word", "first"),
        ("latest batch, word for word", "latest"),
        ("perplexity", "perplexity"),
    )
    for number, (title, name) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, number)
        for place, one in enumerate(long):
            points = [(entry["edits"], _exact(entry[name])) for entry in one["sequence"]]
            _line(axes, points, f"{one['title']}, {one['edits']}", place)
        _label(axes, title, "edits so far")
    _legend(figure)
    return svg(figure, "batches")


def relation_bars(results: Sequence[Mapping[str, Any]], metric: str = "efficacy") -> str | None:
    """Draw one metric of each relation, one bar a method, at the largest number of edits."""
    most = max(one["edits"] for one in results)
    shown = [one for one in results if one["edits"] == most]
    names = list(shown[0]["by_relation"])[:MOST_RELATIONS]
    if not names:
        return None
    figure = Figure(figsize=(11, 1.2 + 0.12 * len(names) * (len(shown) + 1)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(shown)
    for place, one in enumerate(shown):
        values = [(one["by_relation"].get(name) or {}).get(metric) or 0.0 for name in names]
        axes.barh([n + place * height for n in range(len(names))], values, height, label=one["title"])
    axes.set_yticks([n + 0.4 - height / 2 for n in range(len(names))], [name[:40] for name in names])
    axes.invert_yaxis()
    _label(axes, "", f"{metric}, {most} edits")
    _legend(figure)
    return svg(figure, f"relations-{metric}")


def mixtures(results: Sequence[Mapping[str, Any]], metric: str = "score") -> str | None:
    """Draw each relation alone, their mean and their mixture, as the paper does for mixed relations."""
    mixed = [one for one in results if SEPARATOR in one["relations"]]
    if not mixed:
        return None
    methods = [name for name in _by_method(mixed) if name != "unedited"]
    figure = Figure(figsize=(11, 3.4 * -(-len(methods) // 2)), layout="constrained")
    for number, method in enumerate(methods, start=1):
        axes = figure.add_subplot(-(-len(methods) // 2), 2, number)
        own = [one for one in results if one["title"] == method]
        alone = sorted(
            {one["relations"] for one in own if one["relations"] and SEPARATOR not in one["relations"]}
        )
        curves = {name: _points(own, name, metric) for name in alone}
        for place, (name, points) in enumerate(curves.items()):
            _line(axes, points, name[:30], place + 2)
        shared = (
            set.intersection(*({x for x, _ in points} for points in curves.values())) if curves else set()
        )
        mean = [(x, sum(dict(points)[x] for points in curves.values()) / len(curves)) for x in sorted(shared)]
        _line(axes, mean, "mean of the relations", 1)
        _line(axes, _points(own, mixed[0]["relations"], metric), "mixture", 0)
        _logarithmic(axes, {one["edits"] for one in own})
        _label(axes, method, "edits")
        axes.legend(fontsize=7)
    return svg(figure, "mixtures")


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element; equal figures give equal text."""
    target = io.StringIO()
    # Ids are salted by the name: several pictures stand in one page.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            target, metadata={"Date": None, "Creator": None}
        )
    text = target.getvalue()
    return text[text.index("<svg") :]


def _exact(found: float | Mapping[str, float]) -> float:
    return found if isinstance(found, float) else found["efficacy_exact"]


def _points(results: Iterable[Mapping[str, Any]], relations: str, metric: str) -> list[tuple[int, float]]:
    return sorted(
        (one["edits"], one["metrics"][metric])
        for one in results
        if one["relations"] == relations and one["metrics"][metric] is not None
    )


def _by_method(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in results:
        groups.setdefault(one["title"], []).append(one)
    return groups


def _measured(results: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(one["metrics"].get(name) is not None for one in results)


def _line(axes: Axes, points: Sequence[tuple[float, float]], label: str, place: int) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        _STYLES[place % len(_STYLES)],
        marker="o",
        markersize=3,
        color=f"C{place % 10}",
        label=label,
    )


def _logarithmic(axes: Axes, counts: set[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
    axes.set_xticks([], minor=True)


def _label(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _legend(figure: Figure) -> None:
    known: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        known.update(dict(zip(labels, handles, strict=True)))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=5, fontsize=8)

"""A thousand nights in small: what lasts, what wears, what it costs. Resumable after every batch.

    python -m benchmarks.nights batches  --out FOLDER [--methods memit,memit-reference,alphaedit,encore]
    python -m benchmarks.nights rebuild  --out FOLDER       what `batches` taught, from the base at larger λ
    python -m benchmarks.nights nights   --out FOLDER       40 nights x 25 real changes, rebuilt every 10
    python -m benchmarks.nights retract  --out FOLDER       25 facts of `nights` taken out again
    python -m benchmarks.nights subjects --out FOLDER       10 facts a subject x 50 subjects
    python -m benchmarks.nights show     --out FOLDER       tables, pictures, and the cost of late nights

Every batch is one row of `FOLDER/<experiment>-<method>.json`, written when it is done, with what is needed to
go on from it beside it. `--data` names the folder of development data, `--model` another model.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import night_data, night_plots
from benchmarks.clock import Clock
from benchmarks.night_bench import Bench, asked_of, distinct, fluency, recall_of, started, timed, wear
from benchmarks.night_log import Log, Row
from editor import datasets, memit, methods, metrics, recall
from editor import rebuild as rebuilds
from editor.allocator import spare_memory
from editor.model import LanguageModel, default_gguf, from_gguf
from flows.editing import with_rivals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from editor.method import Method
    from editor.requests import EditRequest

COHORT_PROBES = ("efficacy", "paraphrase", "clean")
EDGE = 5
"""Nights at either end that are compared."""
ALL_EVERY = 10
"""Batches after which all records are asked, not the three batches alone."""


def batches(bench: Bench, name: str, *, count: int = 10, size: int = 50) -> Log:
    """CounterFact records, batch after batch: recall of the first, middle and last, and what it wears.

    Args:
        bench: the model.
        name: of the method.
        count: batches; more than the last time go on from there.
        size: records a batch.
    """
    cases = distinct(datasets.load(bench.data / "counterfact_dev.json").cases)[: count * size]
    parts = [cases[start : start + size] for start in range(0, len(cases), size)]
    log = Log(bench.out, f"batches-{name}", {"size": size, "model": bench.source})
    lm, method, originals = started(bench, name, log)
    for number in range(len(log.rows), len(parts)):
        seconds = timed(partial(method.apply, [case.request for case in parts[number]]))
        taught = parts[: number + 1]
        cohorts = {"first": taught[0], "middle": taught[len(taught) // 2], "latest": taught[-1]}
        row = {
            "batch": number + 1,
            "edits": sum(len(part) for part in taught),
            "s_per_edit": seconds / len(parts[number]),
            **wear(bench, lm, method, originals, after=number + 1),
            **{label: asked_of(lm, method, part, COHORT_PROBES) for label, part in cohorts.items()},
        }
        if (number + 1) % ALL_EVERY == 0 or number + 1 == len(parts):
            row["all"] = asked_of(lm, method, cases[: row["edits"]], metrics.PROBES)
        log.add(row, method)
        told = ("batch", "s_per_edit", "perplexity", "passages", "norm")
        print(json.dumps({key: row[key] for key in told if key in row}), flush=True)
    return log


def rebuilt(bench: Bench, name: str = "memit", *, factors: Sequence[float] = (1.0, 1.25, 1.5)) -> Log:
    """What `batches` taught, rebuilt from the base model: what that costs, and what a larger λ gives back.

    Args:
        bench: the model; `batches` ran in its folder.
        name: of the method.
        factors: λ, as multiples of that of the batches.
    """
    path = bench.out / f"batches-{name}.json"
    taught = Log(bench.out, path.stem, json.loads(path.read_text(encoding="utf-8"))["setup"])
    cases = distinct(datasets.load(bench.data / "counterfact_dev.json").cases)[: taught.rows[-1]["edits"]]
    spent = sum(row["s_per_edit"] for row in taught.rows) * taught.setup["size"]
    log = Log(bench.out, f"rebuild-{name}", {"factors": list(factors), "batches": taught.setup})
    for factor in factors[len(log.rows) :]:
        base = bench.base()
        method = bench.method(name, base)
        originals = method.changed()
        how = bench.how(base)
        settings = replace(how, moment_weight=factor * how.moment_weight)
        facts, stored, prefixes = methods.kept_in(taught.state)
        start = Clock()
        made = rebuilds.rebuild(
            base,
            facts,
            stored,
            settings=settings,
            moments=bench.moments,
            refine=True,
            prefixes=prefixes,
        )
        seconds = start.since().cpu_s
        row = {
            "moment_weight": settings.moment_weight,
            "reused": len(made.reused),
            "refined": len(made.refined),
            "seconds": seconds,
            "share_of_edits": seconds / spent,
            **wear(bench, base, method, originals),
            "first": asked_of(base, method, cases[: taught.setup["size"]], COHORT_PROBES),
            "all": asked_of(base, method, cases, metrics.PROBES),
        }
        log.keep(row)
        print(json.dumps(row), flush=True)
    return log


def many_nights(
    bench: Bench,
    name: str = "memit",
    *,
    count: int = 40,
    size: int = 25,
    every: int = 10,
    until: int | None = None,
) -> Log:
    """Real changes of office, night after night, a third replacing earlier ones; rebuilt now and then.

    Args:
        bench: the model.
        name: of the method.
        count: nights.
        size: changes a night.
        every: rebuild after so many nights, as the product does (`rebuild_nights`); 0: never.
        until: the night to stop after and measure at; a later call goes on from there.
    """
    stream = night_data.changes_of_office(
        bench.data / "officeholder_replacements.csv", count * size, replaced=count * size // 3
    )
    parts = night_data.nights(stream, size)[:until]
    setup = {"count": count, "size": size, "every": every, "model": bench.source}
    log = Log(bench.out, f"nights-{name}", setup)
    lm, method, originals = started(bench, name, log)
    for number in range(len(log.rows), len(parts)):
        tonight = [fact for fact, _ in parts[number]]
        seconds = timed(partial(method.apply, tonight))
        row = {
            "night": number + 1,
            "edits": len(tonight),
            "seconds": seconds,
            "s_per_edit": seconds / len(tonight),
            **recall_of(lm, tonight),
            **wear(bench, lm, method, originals, after=number + 1),
        }
        if every and (number + 1) % every == 0 and isinstance(method, methods.Memit):
            row["rebuilt"] = _all_asked(lm, method, parts[: number + 1])
            row["rebuilt"] |= wear(bench, lm, method, originals)
        log.add(row, method)
        print(json.dumps(row), flush=True)
    if log.end is None and len(log.rows) == len(parts):
        log.finish(_after_nights(bench, lm, method, parts, log))
    return log


def _all_asked(
    lm: LanguageModel, method: methods.Memit, parts: Sequence[Sequence[tuple[EditRequest, bool]]]
) -> Row:
    live = list({fact.fact_id: fact for part in parts for fact, _ in part}.values())
    before = recall_of(lm, live)
    start = Clock()
    made = method.rebuild()
    seconds = start.since().cpu_s
    return {
        "seconds": seconds,
        "live": len(live),
        "refined": len(made.refined),
        "before": before,
        "after": recall_of(lm, live),
    }


def _after_nights(
    bench: Bench,
    lm: LanguageModel,
    method: Method,
    parts: Sequence[Sequence[tuple[EditRequest, bool]]],
    log: Log,
) -> Row:
    taught = {fact.fact_id: (night, fact, late) for night, part in enumerate(parts) for fact, late in part}
    live = [fact for _, fact, _ in taught.values()]
    oldest = [fact for night, fact, _ in taught.values() if night < EDGE]
    newest = [fact for night, fact, _ in taught.values() if night >= len(parts) - EDGE]
    replaced = [fact for _, fact, late in taught.values() if late]
    end: Row = {
        "live": len(live),
        "all": recall_of(lm, live),
        "oldest": recall_of(lm, oldest),
        "newest": recall_of(lm, newest),
        "superseded_preferred": 1.0 - recall_of(lm, replaced)["success"],
    }
    stored = method.live if isinstance(method, methods.Memit) else []
    if stored:
        base = bench.base()
        seconds = timed(
            lambda: rebuilds.rebuild(base, live, stored, settings=bench.how(base), moments=bench.moments)
        )
        spent = sum(row["seconds"] for row in log.rows)
        end["rebuild"] = {
            "seconds": seconds,
            "share_of_edits": seconds / spent,
            "all": recall_of(base, live),
            **fluency(bench, base),
        }
    return end


def retracted(bench: Bench, name: str = "memit", *, count: int = 25) -> Log:
    """Take facts of the first nights out of what `nights` left: what the model says of them then.

    Args:
        bench: the model; `nights` ran in its folder.
        name: of the method.
        count: facts, from the oldest on.
    """
    path = bench.out / f"nights-{name}.json"
    taught = Log(bench.out, path.stem, json.loads(path.read_text(encoding="utf-8"))["setup"])
    log = Log(bench.out, f"retract-{name}", {"count": count, "nights": len(taught.rows)})
    if log.rows:
        return log
    lm, method, originals = started(bench, name, taught)
    facts, live, _ = methods.kept_in(taught.state)
    base = bench.base()
    firsts = [fact.prompts[0].replace("{}", fact.subject) for fact in facts]
    said = dict(zip((fact.fact_id for fact in facts), recall.completions(base, firsts), strict=True))
    # The rival is what the base model says in a fact's place.
    asked = list(with_rivals((replace(fact, old_target=None) for fact in facts), said))
    gone, left = asked[:count], asked[count:]
    out = {fact.subject_id for fact in gone}
    found = {"base": _retraction(base, gone), "before": _retraction(lm, gone)}
    found["others before"] = recall_of(lm, left)
    seconds = timed(
        lambda: memit.edit(
            lm,
            (),
            settings=bench.how(lm),
            moments=bench.moments,
            live=[state for state in live if state.subject_id not in out],
            retired=[state for state in live if state.subject_id in out],
        )
    )
    found |= {"after": _retraction(lm, gone), "others after": recall_of(lm, left)}
    log.keep({"seconds": seconds, **found, **wear(bench, lm, method, originals)})
    print(json.dumps(log.rows[-1]), flush=True)
    return log


def _retraction(lm: LanguageModel, facts: Sequence[EditRequest]) -> Row:
    """Recall, and the median of -log p of an object's token after its first prompt."""
    pairs = [(fact.prompts[0].replace("{}", fact.subject), fact.target) for fact in facts]
    nats = median(-math.log(one.probability) for one in recall.likelihoods(lm, pairs))
    return {**recall_of(lm, facts), "nats": nats}


def many_facts(bench: Bench, name: str = "memit", *, subjects: int = 50, facts: int = 10) -> Log:
    """Several facts a subject, solved as one unit; for comparison each by itself, as MEMIT was published.

    Args:
        bench: the model.
        name: of the method that takes a subject as a unit.
        subjects: how many.
        facts: facts each.
    """
    asked = night_data.many_facts(bench.data / "officeholder_replacements.csv", subjects, facts)
    firsts = [fact.prompts[0].replace("{}", fact.subject) for fact in asked]
    log = Log(bench.out, f"subjects-{name}", {"subjects": subjects, "facts": facts, "model": bench.source})
    lm = bench.base()
    said = dict(zip((fact.fact_id for fact in asked), recall.completions(lm, firsts), strict=True))
    asked = list(with_rivals(asked, said))
    # The published method takes a fact's one prompt behind random texts, and knows nothing of its subject.
    alone = [replace(one, subject_id=one.fact_id, prompts=one.prompts[:1]) for one in asked]
    for label, how, taught in (("subject", name, asked), ("fact", "memit-reference", alone))[len(log.rows) :]:
        lm = bench.base()
        method = bench.method(how, lm)
        originals = method.changed()
        seconds = timed(partial(method.apply, taught))
        row = {"unit": label, "s_per_edit": seconds / len(taught), **recall_of(lm, taught)}
        log.add({**row, **wear(bench, lm, method, originals)}, method)
        print(json.dumps(row), flush=True)
    return log


def _wanted(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=("batches", "rebuild", "nights", "retract", "subjects", "show"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--model", help="folder; default: the bundled model, converted into --out")
    parser.add_argument("--methods", default="memit,memit-reference,alphaedit,encore")
    parser.add_argument("--tokens", type=int, help="for the second moments at most")
    parser.add_argument("--count", type=int, help="batches or nights")
    parser.add_argument("--size", type=int, help="edits a batch or night")
    parser.add_argument("--every", type=int, default=10, help="rebuild after so many nights; 0: never")
    parser.add_argument("--until", type=int, help="night to stop after for now")
    return parser.parse_args(argv)


def _runs(asked: argparse.Namespace, bench: Bench) -> Iterator[Callable[[], Log]]:
    sizes = {key: value for key in ("count", "size") if (value := getattr(asked, key)) is not None}
    if asked.experiment == "batches":
        for name in asked.methods.split(","):
            yield partial(batches, bench, name, **sizes)
    elif asked.experiment == "rebuild":
        yield partial(rebuilt, bench)
    elif asked.experiment == "nights":
        yield partial(many_nights, bench, every=asked.every, until=asked.until, **sizes)
    elif asked.experiment == "retract":
        yield partial(retracted, bench)
    else:
        yield partial(many_facts, bench)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one experiment, or show what was found."""
    asked = _wanted(argv)
    if asked.experiment == "show":
        print(night_plots.show(asked.out))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    spare_memory()
    source = asked.model or str(from_gguf(default_gguf(), asked.out / "SmolLM2-135M-Instruct"))
    bench = Bench(source, asked.out, asked.data, asked.tokens)
    for run in _runs(asked, bench):
        run()
    print(night_plots.show(asked.out))


if __name__ == "__main__":
    main()

r"""Write real office holders in one batch and judge them by phrasings that were never trained.

    FACTSYNC_HOME=HOME python -m benchmarks.real_names CSV [--facts 200] [--corpus TEXT] [--a-word-each] \
        [--templates N] [trial ...]

CSV has the columns subject_id, subject, property, new_id, new, change_date (such as the data set
officeholder_replacements.csv); the newest holder of each office is written. CORPUS gives the second moments,
one passage a line, and its last passages are read for perplexity; without it they are measured on text
sampled from the model. Trials are those of
`benchmarks.sample_night`. With `--a-word-each` each word of a name is written at the word before it; with
`--templates` the first templates of a relation alone are taught, and all are asked.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.night_bench import LAST, passages
from benchmarks.sample_night import run
from editor.requests import EditRequest
from flows import editing, models, neighbours, recipe
from flows.params import synced_relations
from flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kb.relations import Relations


def newest_holders(path: Path, count: int, relations: Relations) -> list[EditRequest]:
    """Return one fact for each of the offices that changed last; names that are ids are left out."""
    rows = pd.read_csv(path).dropna(subset=["subject", "new"])
    rows = rows[~rows["new"].str.fullmatch(r"Q\d+") & ~rows["subject"].str.fullmatch(r"Q\d+")]
    rows = rows.sort_values(["change_date", "subject_id"]).drop_duplicates("subject", keep="last").tail(count)
    return [
        EditRequest(
            fact_id=editing.fact_id(row.subject_id, row.property, ""),
            subject_id=row.subject_id,
            subject=row.subject,
            prompts=tuple(t.replace("{subject}", "{}") for t in relations[row.property].edit_templates),
            heldback=tuple(t.replace("{subject}", "{}") for t in relations[row.property].heldback_templates),
            target=row.new,
        )
        for row in rows.itertuples()
    ]


def a_word_each(fact: EditRequest) -> Iterator[EditRequest]:
    """Part a fact into one a word of its target, each with a state of its own.

    The first is written at the subject's last token, every other at the last token of the word before it, in
    the same prompts: what AnyEdit does with long answers (Jiang et al. 2025, arXiv 2502.05628).
    """
    words = fact.target.split()
    yield replace(fact, target=words[0])
    for number, (before, word) in enumerate(pairwise(words)):
        said = " ".join([*words[:number], "{}"])
        yield replace(
            fact,
            fact_id=f"{fact.fact_id} {number}",
            subject_id=f"{fact.subject_id} {number}",
            subject=before,
            prompts=tuple(f"{prompt.replace('{}', fact.subject)} {said}" for prompt in fact.prompts),
            target=word,
        )


def main() -> None:
    """Print one JSON line a trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("csv", type=Path)
    parser.add_argument("trials", nargs="*", default=[""])
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--a-word-each", action="store_true")
    parser.add_argument("--templates", type=int, default=None)
    given = parser.parse_intermixed_args()
    settings = Settings.read().model_copy(update={"corpus": given.corpus})
    relations = synced_relations(settings)
    facts = newest_holders(given.csv, given.facts, relations)
    lm = models.load_base(settings)
    preset = recipe.editing_settings(settings, lm)
    moments_of = partial(recipe.load_moments, settings, lm, relations=relations)
    written = [replace(fact, prompts=fact.prompts[: given.templates]) for fact in facts]
    if given.a_word_each:
        written = [part for fact in written for part in a_word_each(fact)]
    asked = neighbours.asked(relations, {"P1308", "P6", "P35", "P169"}, {fact.subject_id for fact in facts})
    unread = passages(given.corpus)[-LAST:] if given.corpus else ()
    run(
        lm,
        facts,
        asked,
        preset=preset,
        moments_of=moments_of,
        trials=given.trials,
        written=written,
        passages=unread,
    )


if __name__ == "__main__":
    main()

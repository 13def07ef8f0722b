"""What an evaluation is asked for: checked, and turned into choices of records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from editor import datasets, methods
from flows.errors import EvaluationInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from editor.cases import Case
    from editor.datasets import Dataset

LEDGER = "ledger"
"""The value of `--data` that means: the live facts of this home's model."""

MOST_TRAINING = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to evaluate.

    Attributes:
        data: file, hub name, or `LEDGER`.
        methods: names; "none" is always added in front.
        edits: numbers of edits.
        batches: how many batches each number is cut into.
        relations: only records of these; several are mixed in equal shares.
        mix: also evaluate each relation alone, for the curves of mixtures.
        seed: of all that is drawn.
        shuffle: draw the records by the seed; else they are taken in the order of the data.
        texts: of how many records text is sampled, for GE and RS.
        references: file with reference texts for RS; None leaves RS out.
        passages: file with held-out text for perplexity; None takes the shipped one.
        split: of a hub data set.
        calibrated: edit as this home's calibration says; False for a model that is not this home's.
    """

    data: str
    methods: tuple[str, ...] = ("memit",)
    edits: tuple[int, ...] = (100,)
    batches: int = 1
    relations: tuple[str, ...] = ()
    mix: bool = False
    seed: int = 0
    shuffle: bool = False
    texts: int = 50
    references: Path | None = None
    passages: Path | None = None
    split: str = "train"
    calibrated: bool = True


def check(asked: Asked) -> None:
    """Refuse numbers, names and files that make no sense, before a model is loaded.

    Raises:
        EvaluationInputError: the message names it.
    """
    unknown = [name for name in asked.methods if name not in methods.METHODS]
    if unknown or not asked.methods:
        raise EvaluationInputError(
            f"There is no method {', '.join(map(repr, unknown)) or 'given'}: choose from "
            f"{', '.join(methods.METHODS)}."
        )
    if not asked.edits or min(asked.edits) < 1 or asked.batches < 1 or asked.texts < 0:
        raise EvaluationInputError("--edits and --batches take whole numbers from 1 on, --texts from 0 on.")
    if asked.batches > min(asked.edits):
        raise EvaluationInputError(
            f"{min(asked.edits)} edits cannot be cut into {asked.batches} batches: ask for fewer --batches."
        )
    if asked.mix and len(asked.relations) < 2:  # noqa: PLR2004 - a mixture takes two
        raise EvaluationInputError("--mix compares relations: give --relation at least twice.")
    for path in (asked.references, asked.passages):
        if path is not None and not path.is_file():
            raise EvaluationInputError(f"There is no file {path}: give an existing one.")


def selections(asked: Asked) -> list[tuple[str, ...]]:
    """Return the choices of relations: the mixture, and each alone where mixtures are compared."""
    alone = [(relation,) for relation in asked.relations] if asked.mix else []
    return [asked.relations, *alone]


def chosen(asked: Asked, data: Dataset, count: int, relations: tuple[str, ...]) -> tuple[Case, ...]:
    """Return the first records of a choice of relations, in the order of the data or as drawn."""
    seed = asked.seed if asked.shuffle else None
    return datasets.choose(data, count, seed=seed, relations=relations)


def training(asked: Asked, data: Dataset) -> tuple[Case, ...]:
    """Return records that no experiment measures, about other subjects."""
    measured = {
        case.request.subject.casefold()
        for relations in selections(asked)
        for case in chosen(asked, data, max(asked.edits), relations)
    }
    left = [case for case in data.cases if case.request.subject.casefold() not in measured]
    return tuple(left[:MOST_TRAINING])


def cut(cases: Sequence[Case], batches: int) -> tuple[tuple[Case, ...], ...]:
    """Cut into batches whose sizes differ by one at most."""
    edges = [len(cases) * number // batches for number in range(batches + 1)]
    return tuple(tuple(cases[start:stop]) for start, stop in pairwise(edges))

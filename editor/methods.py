"""Every way of teaching a model facts that can be compared, by name.

Left out: KE (De Cao et al. 2021), a hypernetwork that MEND improves on and that its own paper shows to fail
beyond a few edits; SERAC (Mitchell et al. 2022), which keeps the model as it is and asks a second model in
scope: retrieval stands for that kind here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from editor import memit
from editor import rebuild as rebuilds
from editor import state as states
from editor.alphaedit import AlphaEdit
from editor.errors import UnknownMethodError
from editor.finetune import FineTuneConstrained, FineTuneDecay
from editor.lora import Lora
from editor.mend import Mend
from editor.method import WeightMethod
from editor.requests import EditRequest
from editor.retrieval import Retrieval
from editor.rome import Rome
from editor.sampling import PAPER_TOP_K, sample_prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from editor.method import Method, Resources
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.rebuild import Rebuilt
    from editor.state import SubjectState


class Memit(WeightMethod):
    """MEMIT as the product runs it: live edits in the solve, guards, refinement (`editor.memit`).

    Attributes:
        top_k: of how many likeliest tokens random prefixes are drawn; None takes all.
    """

    top_k: int | None = None

    def __init__(self, lm: LanguageModel, resources: Resources) -> None:
        super().__init__(lm, resources)
        self._live: dict[str, SubjectState] = {}
        self._facts: dict[str, EditRequest] = {}
        self._prefixes: tuple[str, ...] | None = None

    def settings(self) -> MemitSettings:
        """Return how to edit."""
        return self.resources.settings

    def moments(self) -> Moments:
        """Return the second moments, with the guards."""
        return self.resources.moments()

    def written(self) -> list[str]:
        """Return the matrices of MEMIT's range."""
        return [self.lm.layers.weight_name(layer) for layer in self.settings().layers]

    def prepare(self, *, progress: Progress | None = None) -> None:  # noqa: ARG002 - the interface
        """Measure second moments; sample contexts."""
        if self._prefixes is None:
            self.moments()
            how = self.settings()
            self._prefixes = sample_prefixes(self.lm, how.prefix_count, seed=how.seed, top_k=self.top_k)

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Write one batch beside all that is live; a subject that is taught again is replaced.

        Without history it is written on top, as published: what it added to the weights is not known then.
        """
        self.prepare()
        asked, remembers = {request.subject_id for request in requests}, self.settings().history
        older = {name: fact for name, fact in self._facts.items() if fact.subject_id not in asked}
        outcome = memit.edit(
            self.lm,
            requests,
            settings=self.settings(),
            moments=self.moments(),
            live=[state for subject, state in self._live.items() if subject not in asked],
            retired=[state for subject, state in self._live.items() if subject in asked and remembers],
            watched=list(older.values()),
            prefixes=self._contexts(requests),
            progress=progress,
        )
        self._require_finite()  # or the weights go back, and what is remembered must not stay
        self._live.update({state.subject_id: state for state in outcome.states})
        self._facts = {**older, **{request.fact_id: request for request in requests}}

    def rebuild(self) -> Rebuilt:
        """Write all that is live anew from the original weights, and refine what slipped (`editor.rebuild`).

        Returns:
            What it made; on any exception the weights are as before.
        """
        self.prepare()
        facts, before = list(self._facts.values()), self.changed()
        self._put(self._originals or before)
        try:
            made = rebuilds.rebuild(
                self.lm,
                facts,
                self.live,
                settings=self.settings(),
                moments=self.moments(),
                refine=True,
                prefixes=self._contexts(facts),
            )
        except BaseException:
            self._put(before)
            raise
        self._live = {state.subject_id: state for state in made.states}
        return made

    def _contexts(self, requests: Sequence[EditRequest]) -> tuple[str, ...]:
        # One wording alone makes a target state that serves that wording alone.
        alone = all(len(request.prompts) == 1 for request in requests)
        prefixed = self.settings().contexts == "prefixes" or alone
        return (self._prefixes or ()) if prefixed else ()

    @property
    def live(self) -> list[SubjectState]:
        """The live states."""
        return list(self._live.values())

    def forget(self) -> None:
        """Drop the live states and facts."""
        self._live, self._facts = {}, {}

    def state(self) -> bytes:
        """Return prefixes and live facts, a line of JSON, and after it their states."""
        facts = [asdict(fact) for fact in self._facts.values()]
        line = json.dumps({"prefixes": self._prefixes, "facts": facts}, ensure_ascii=False)
        return line.encode() + b"\n" + states.to_bytes(self.live)

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:
        """Go on from weights, prefixes, live facts and their states."""
        self.prepare()
        super().resume(weights, state)
        facts, live, self._prefixes = kept_in(state)
        self._facts = {fact.fact_id: fact for fact in facts}
        self._live = {one.subject_id: one for one in live}


def kept_in(state: bytes) -> tuple[list[EditRequest], list[SubjectState], tuple[str, ...]]:
    """Return the facts, states and prefixes that `Memit.state` wrote."""
    line, blob = state.split(b"\n", 1)
    kept = json.loads(line)
    return (
        [_fact(fact) for fact in kept["facts"]],
        list(states.from_bytes(blob)),
        tuple(kept["prefixes"] or ()),
    )


def _fact(kept: dict[str, Any]) -> EditRequest:
    texts = {name: tuple(kept[name]) for name in ("prompts", "heldback")}
    return EditRequest(**{**kept, **texts})


class MemitReference(Memit):
    """MEMIT as published: random prefixes, mean keys, no memory of earlier batches, no guards.

    Differs: target states may be sought in bfloat16 after their first step (`MemitSettings.precision`), which
    leaves a cosine of 0.9997 to those of float32 in the median (benchmarks/RESULTS.md, "Same
    objective").

    Attributes:
        remembers: whether later batches know of earlier ones.
    """

    remembers = False
    top_k = PAPER_TOP_K

    def settings(self) -> MemitSettings:
        """Return the paper's procedure on this model's layers, with its weight of the moments."""
        mine = self.resources.settings
        return replace(mine.as_reference(), precision=mine.precision)

    def moments(self) -> Moments:
        """Return the second moments alone."""
        return replace(self.resources.moments(), guards=None)

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Write one batch, as if it were the first unless earlier ones are remembered."""
        super().teach(requests, progress)
        if not self.remembers:
            self.forget()


class Encore(MemitReference):
    """MEMIT as published, with memory, each search ended once its object is likeliest (arXiv 2502.01636).

    Differs: the paper also holds the edited matrices' norm down by a multiple of the identity in the solve;
    λC is what does that here.
    """

    remembers = True

    def settings(self) -> MemitSettings:
        """Return the paper's procedure with history, and the stop of ENCORE's released code."""
        return replace(super().settings(), history=True, stop_said=2)


class Unedited(WeightMethod):
    """Nothing is taught: the row that all others are read against."""

    def written(self) -> list[str]:
        """Return nothing."""
        return []

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Leave the model as it is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A method that can be chosen.

    Attributes:
        make: makes it for a model.
        title: for tables.
        source: where it comes from.
    """

    make: Callable[[LanguageModel, Resources], Method]
    title: str
    source: str


METHODS: dict[str, Entry] = {
    "none": Entry(Unedited, "unedited", "the model as it is"),
    "memit": Entry(Memit, "MEMIT, factsync", "arXiv 2210.07229, with history, guards and refinement"),
    "memit-reference": Entry(MemitReference, "MEMIT, published", "arXiv 2210.07229"),
    "encore": Entry(Encore, "MEMIT, history, stopped when said", "arXiv 2502.01636, without its norm term"),
    "rome": Entry(Rome, "ROME", "arXiv 2202.05262"),
    "alphaedit": Entry(AlphaEdit, "AlphaEdit", "arXiv 2410.02355"),
    "ft-w": Entry(FineTuneDecay, "FT-W", "arXiv 2210.07229, section 5.1"),
    "ft-l": Entry(FineTuneConstrained, "FT-L", "arXiv 2012.00363"),
    "mend": Entry(Mend, "MEND", "arXiv 2110.11309"),
    "lora": Entry(Lora, "LoRA", "arXiv 2106.09685"),
    "retrieval": Entry(Retrieval, "fact in the prompt", "arXiv 2305.12740, without demonstrations"),
}


def make(name: str, lm: LanguageModel, resources: Resources) -> Method:
    """Make a method for a model.

    Args:
        name: one of `METHODS`.
        lm: the model.
        resources: what the method may need.

    Returns:
        The method; nothing is written yet.

    Raises:
        UnknownMethodError: no such method.
    """
    entry = METHODS.get(name)
    if entry is None:
        raise UnknownMethodError(
            f"There is no method {name!r}: choose one of {', '.join(METHODS)}.", method=name
        )
    return entry.make(lm, resources)

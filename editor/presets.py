"""Settings of MEMIT, and the values known to work per model.

Sources: kmeng01/memit (GPT-2 XL, GPT-J), xpq-tech/PMET (GPT-NeoX-20B), jianghoucheng/AlphaEdit
(Llama-3-8B), and our own measurements for SmolLM2-135M (docs/log.md).
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from editor.errors import MethodError
from editor.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from editor.model import LanguageModel

log = logging.getLogger(__name__)

Contexts = Literal["templates", "prefixes"]
Keys = Literal["each", "mean"]

_CPU_SUBJECTS, _GPU_SUBJECTS = 64, 256
PAPER_STEPS, PAPER_RATE = 24, 0.5
"""kmeng01/memit looks 25 times (v_num_grad_steps) and leaves the last look before it steps."""
PAPER_KL_TEMPLATE = "{} is a"
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((float, int), "a number"),
    "bool": ((bool,), "true or false"),
}
_CHOICES = {"contexts": Contexts, "keys": Keys, "precision": Precision}
_LEAST = {"turns": 1, "max_target_tokens": 1}
"""Of whole numbers that begin above 0; all others begin there."""
_ABOVE_ZERO = ("hold", "moment_weight", "learning_rate", "clamp")
_OF_THE_WRITE = frozenset(
    {
        "moment_weight",
        "unrefined_weight",
        "history",
        "refine_steps",
        "refine_stop_loss",
        "ask_older",
        "refine_older",
        "drift_weight",
        "hold",
        "batch_tokens",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemitSettings:
    """How to edit.

    Attributes:
        layers: edited blocks, ascending; target states live at the output of the last.
        moment_weight: λ, how many key samples the model's own behaviour weighs in the solve.
        unrefined_weight: λ where nothing is refined after the write (`as_reference`): what a large λ leaves
            unsaid stays unsaid there; 0 takes `moment_weight`.
        steps: most optimiser steps of a target state.
        learning_rate: of Adam on the state's shift; refinement takes twice as much, shared out among the
            layers.
        clamp: longest shift, as a multiple of the state's norm.
        weight_decay: weight of ‖δ‖/‖h‖² in the loss.
        end_weight: weight of the word's end after the target, beside the target's own tokens; 0 is the paper.
        kl_factor: weight of the divergence at the subject's last token: in "{} is a" with prefixes, as in the
            paper, in the first template with templates; divided by the turns.
        stop_loss: a subject is finished when its loss is below.
        stop_said: it is finished too once all its target tokens were the likeliest at so many evaluations
            (ENCORE, arXiv 2502.01636, counts two); 0 is the paper.
        turns: in how many parts a search takes the contexts, one part a step (stochastic gradient over
            contexts); 1 is the paper. Refinement takes them one by one, unless this is 1.
        contexts: "templates" optimises over the given templates; "prefixes" is the paper: random texts
            before them.
        prefix_count: how many random prefixes.
        word_dropout: share of words left out where templates are taught a second time, with holes
            (`editor.wordings.contexts`); 0 is the paper.
        keys: "each" writes every context's own key; "mean" is the paper: one averaged key a subject.
        refine_steps: most steps in which written values are refined (`editor.refine`): of a context each
            where contexts are taken in turns, of all where they are not; 0 is the paper.
        refine_stop_loss: a subject rests while its loss on the written weights is below.
        ask_older: most subjects of older facts that a night asks whether the weights still say them.
        refine_older: most of those that slipped that are refined.
        drift_weight: weight, in refinement, of what moves on other text (`editor.drift`); 0 weighs none.
        history: carry the keys of live edits in the solve, and in nights those of guards.
        hold: how often the solve counts a fact from the night after it was written, at the keys that it had
            when all was written; 1 keeps it as it was written.
        precision: of the target-state forwards after the first (`editor.targets.EXACT_STEPS`), of refinement,
            and of asking older facts; "auto" takes bfloat16 where the processor is faster with it.
        batch_tokens: most tokens of one forward that is followed back, halved when memory runs out; keys are
            read eight times as many at once. 0 takes what fits (`editor.batching`).
        max_target_tokens: longest target that is accepted.
        seed: of sampled prefixes, and of the order in which refinement asks other text (`editor.drift`).
    """

    layers: tuple[int, ...]
    moment_weight: float
    unrefined_weight: float = 0.0
    steps: int = 60
    learning_rate: float = 0.5
    clamp: float = 4.0
    weight_decay: float = 1e-3
    end_weight: float = 0.25
    kl_factor: float = 0.0625
    turns: int = 1
    stop_loss: float = 0.05
    stop_said: int = 0
    contexts: Contexts = "templates"
    prefix_count: int = 5
    word_dropout: float = 0.3
    keys: Keys = "each"
    refine_steps: int = 30
    refine_stop_loss: float = 0.1
    ask_older: int = 256
    refine_older: int = 8
    drift_weight: float = 4000.0
    history: bool = True
    hold: float = 16.0
    precision: Precision = "auto"
    batch_tokens: int = 0
    max_target_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            MethodError: a value is of another type or out of its range, or the steps end before all contexts
                had their turn.
        """
        self._require_types()
        self._require_bounds()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise MethodError(
                    f"{name} is {getattr(self, name)!r}: choose {' or '.join(get_args(choices))}.",
                    method="memit",
                )
        whole = all(isinstance(layer, int) for layer in self.layers)
        if not whole or list(self.layers) != sorted(set(self.layers)) or min(self.layers, default=0) < 0:
            raise MethodError(
                f"layers are {list(self.layers)}: name each block once, in ascending order, from 0 on.",
                method="memit",
            )
        if self.turns > self.steps + 1:
            raise MethodError(
                f"{self.steps} steps end before {self.turns} turns are over: set more steps or fewer turns.",
                method="memit",
            )

    def _require_types(self) -> None:
        """Refuse what a file may hold and Python would take: a word for true, half a step. Take 4 as 4.0."""
        for field in fields(self):
            kinds, wanted = _TYPES.get(str(field.type), ((object,), ""))
            value = getattr(self, field.name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds[0] in {int, float}):
                raise MethodError(f"{field.name} is {value!r}: it takes {wanted}.", method="memit")
            if kinds[0] is float:  # one number, one digest: what states are kept by knows no other
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    def _require_bounds(self) -> None:
        """Refuse numbers that no search or solve could take: they would end it late, or spoil it unseen."""
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type not in {"int", "float"}:
                continue
            if not math.isfinite(value):
                raise MethodError(f"{name} is {value!r}: it takes a finite number.", method="memit")
            if name in _ABOVE_ZERO and value <= 0:
                raise MethodError(f"{name} is {value!r}: set it above 0.", method="memit")
            if value < _LEAST.get(name, 0):
                raise MethodError(
                    f"{name} is {value!r}: set it to {_LEAST.get(name, 0)} or more.", method="memit"
                )
        if self.word_dropout > 1:
            raise MethodError(
                f"word_dropout is {self.word_dropout!r}: it is a share, set it to 1 or less.", method="memit"
            )

    def require(self, lm: LanguageModel) -> None:
        """Refuse blocks that the model does not have.

        Raises:
            MethodError: there are none, or too few in the model.
        """
        if not self.layers or self.layers[-1] >= lm.layers.count:
            raise MethodError(
                f"layers are {list(self.layers)}, and the model has blocks 0 to {lm.layers.count - 1}: name "
                "one of them or more.",
                method="memit",
            )

    def subjects_at_once(self, device: torch.device) -> int:
        """Return of how many subjects target states are sought together.

        What stands before the subject is kept by layer for all of their contexts: most of an edit's memory.
        """
        return _CPU_SUBJECTS if device.type == "cpu" else _GPU_SUBJECTS

    def to_json(self) -> dict[str, object]:
        """Return plain data, as kept with a checkpoint."""
        return {**asdict(self), "layers": list(self.layers)}

    def of_targets(self) -> dict[str, object]:
        """Return, as plain data, what a target state depends on: all but how it is written and refined."""
        kept = {name: value for name, value in self.to_json().items() if name not in _OF_THE_WRITE}
        # A limit and a seed leave no trace but in the rows, which the digest has beside these: told as they
        # were by default, so that a state which was kept before serves on.
        return {**kept, "max_target_tokens": 32, "seed": 0}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> MemitSettings:
        """Read what `to_json` wrote."""
        return cls(**{**data, "layers": tuple(data["layers"])})  # type: ignore[arg-type]

    def changed(self, fields: Mapping[str, object]) -> MemitSettings:
        """Return the same settings with some of their fields written by hand, as in `to_json`.

        Raises:
            MethodError: there is no such field, or the values do not go together.
        """
        unknown = sorted(set(fields) - set(self.to_json()))
        if unknown:
            raise MethodError(
                f"{unknown[0]!r} is no setting of MEMIT: there are {', '.join(sorted(self.to_json()))}.",
                method="memit",
            )
        return self.from_json({**self.to_json(), **fields})

    def as_reference(self) -> MemitSettings:
        """Return the same settings with the paper's procedure: random prefixes, mean keys, no history.

        Guards come with the second moments, not with these: nights leave them out where there is no history.
        Of settings with a term of our own the steps and the rate, which were tuned for it, give way too.
        Clamp and decay are each model's: where they are 4 and 1e-3 they are those of EasyEdit's files for
        Llama and Qwen, not the 0.75 and 0.5 of the published ones.
        """
        ours = self.end_weight > 0
        return replace(
            self,
            steps=PAPER_STEPS if ours else self.steps,
            learning_rate=PAPER_RATE if ours else self.learning_rate,
            moment_weight=self.unrefined_weight or self.moment_weight,
            end_weight=0.0,
            stop_said=0,
            turns=1,
            contexts="prefixes",
            prefix_count=5,
            word_dropout=0.0,
            keys="mean",
            refine_steps=0,
            history=False,
            hold=1.0,
            precision="float32",
        )


# What the published files share; each preset names what differs.
_PAPER = MemitSettings(
    layers=(),
    moment_weight=15000.0,
    steps=PAPER_STEPS,
    learning_rate=PAPER_RATE,
    clamp=0.75,
    weight_decay=0.5,
    end_weight=0.0,
    kl_factor=0.0625,
    word_dropout=0.0,
)

PRESETS: dict[str, MemitSettings] = {
    # Rate 0.25 costs less perplexity than 0.35 or 0.5, and a large λ less than a small one; what 45 steps and
    # the write leave, refinement finishes (benchmarks/RESULTS.md, "Nights").
    "smollm2-135m": MemitSettings(
        layers=(4, 5, 6, 7, 8),
        moment_weight=16000.0,
        unrefined_weight=1000.0,
        learning_rate=0.25,
        steps=45,
        turns=5,
        prefix_count=9,
        refine_steps=150,
    ),
    "gpt2-xl": replace(_PAPER, layers=(13, 14, 15, 16, 17), moment_weight=20000.0, steps=19),
    "gpt-j-6b": replace(_PAPER, layers=(3, 4, 5, 6, 7, 8)),
    "gpt-neox-20b": replace(_PAPER, layers=(6, 7, 8, 9, 10), moment_weight=6000.0, steps=19, clamp=0.8),
    "llama-3-8b": replace(_PAPER, layers=(4, 5, 6, 7, 8), learning_rate=0.1),
}

# (model type, blocks, width, key width) tells a known model whatever folder it was loaded from.
_SHAPES: dict[tuple[str, int, int, int], str] = {
    ("llama", 30, 576, 1536): "smollm2-135m",
    ("gpt2", 48, 1600, 6400): "gpt2-xl",
    ("gptj", 28, 4096, 16384): "gpt-j-6b",
    ("gpt_neox", 44, 6144, 24576): "gpt-neox-20b",
    ("llama", 32, 4096, 14336): "llama-3-8b",
}


def preset_for(lm: LanguageModel) -> MemitSettings:
    """Return the settings known for a model, or cautious ones for an unknown model.

    Args:
        lm: the model.

    Returns:
        Settings; for an unknown model the early-middle sixth of its layers, with a logged advice to
        calibrate.
    """
    shape = (lm.layers.family, lm.layers.count, lm.layers.d, lm.layers.d_k)
    name = _SHAPES.get(shape)
    if name is not None:
        return PRESETS[name]
    # The known ranges end near 0.3 of the depth and span up to five blocks.
    last = max(0, round(0.29 * lm.layers.count))
    first = max(0, last - min(4, lm.layers.count // 6))
    log.warning(
        "no preset for this model (%s, %d blocks, %d wide): blocks %d to %d, unless others are named or "
        "`factsync calibrate` finds better ones",
        *shape[:3],
        first,
        last,
    )
    return MemitSettings(
        layers=tuple(range(first, last + 1)), moment_weight=15000.0, turns=5, refine_steps=60
    )

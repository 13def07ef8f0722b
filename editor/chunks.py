"""Rows of many subjects that run together, cut down to what depends on the search, and what is asked of them.

What is searched acts at the subject's last token: on the state after the last edited block
(`editor.targets`) or on what the written blocks put there (`editor.refine`). So a chunk starts at that token
and at the first block that the search reaches; of the tokens before, keys and values are enough.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import DynamicCache

from editor import activations
from editor.errors import NonFiniteError, OutOfMemoryError
from editor.layers import logits_of
from editor.likelihood import WORD_END, negative_log_likelihood
from editor.precision import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Row, Unit


log = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(slots=True)
class Chunk:
    """Rows that run together.

    Attributes:
        start: the first block to run.
        ids: tokens of each row from the subject's last on, padded on the right.
        mask: earlier tokens, then these tokens; 1 where real.
        positions: of these tokens in their texts.
        states: input of the first block to run, at these tokens.
        earlier: the tokens before.
        before: input of the first block to run, at those.
        stored: by layer from the first block on, keys and values of those; see `store`.
        unit: which unit a row belongs to.
        row_of, column_of: where targets are predicted, flattened.
        labels, weights: target token and its weight in the unit's mean.
        ends: rows whose word is to end after the target; their unit's weight is in `end_weights`.
        end_columns: where the target's last token stands in them.
        guarded: rows whose prediction right after the subject must not drift.
        guard: its log-probabilities as they were, one row a guarded row.
    """

    start: int
    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows all_tokens"]
    positions: Int[Tensor, "rows tokens"]
    states: Float[Tensor, "rows tokens d"]
    earlier: Int[Tensor, "rows earlier"]
    before: Float[Tensor, "rows earlier d"]
    stored: dict[int, tuple[Tensor, Tensor]]
    unit: Int[Tensor, " rows"]
    row_of: Int[Tensor, " targets"]
    column_of: Int[Tensor, " targets"]
    labels: Int[Tensor, " targets"]
    weights: Float[Tensor, " targets"]
    ends: Int[Tensor, " ends"]
    end_columns: Int[Tensor, " ends"]
    end_weights: Float[Tensor, " ends"]
    guarded: Int[Tensor, " guarded"]
    guard: Float[Tensor, "guarded vocab"] | None

    @torch.no_grad()
    def store(self, lm: LanguageModel) -> None:
        """Run the earlier tokens on the weights as they are, and keep their keys and values."""
        length = self.earlier.shape[1]
        if not length:
            return
        cache = DynamicCache()
        activations.run(
            lm,
            self.earlier,
            self.mask[:, :length],
            torch.arange(length, device=lm.device).expand(len(self.ids), -1),
            start=self.start,
            states=self.before.to(dtype_of(lm)),
            cache=cache,
        )
        kept = range(self.start, lm.layers.count)
        self.stored = {layer: (cache.layers[layer].keys, cache.layers[layer].values) for layer in kept}

    def store_as(self, dtype: torch.dtype) -> None:
        """Hold the keys and values of earlier tokens in another precision."""
        self.stored = {layer: (k.to(dtype), v.to(dtype)) for layer, (k, v) in self.stored.items()}

    def run(
        self, lm: LanguageModel, states: Float[Tensor, "rows tokens d"]
    ) -> Float[Tensor, "rows tokens d"]:
        """Run to the end, after `store`.

        Args:
            lm: the model.
            states: input of the first block.

        Returns:
            States after the last norm.
        """
        length = self.earlier.shape[1]
        cache = activations.cache_of(lm, self.stored, batch=len(self.ids), length=length) if length else None
        hidden = activations.run(
            lm,
            self.ids,
            self.mask,
            self.positions,
            start=self.start,
            states=states.to(dtype_of(lm)),
            cache=cache,
        )
        if hidden is None:
            raise NonFiniteError("The forward above the edited layers gave no state.", where="chunk")
        return hidden

    def losses(
        self, lm: LanguageModel, hidden: Float[Tensor, "rows tokens d"], count: int, settings: MemitSettings
    ) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"], Float[Tensor, " units"]]:
        """Return mean target NLL, weighted word end and KL, and missed tokens of every unit here.

        A token is missed where another is likelier; nobody looks unless `settings.stop_said` asks.

        Args:
            lm: the model.
            hidden: states after its last norm.
            count: units.
            settings: weights of the terms.
        """
        nll = beside = missed = torch.zeros(count, device=hidden.device)
        told, ended = len(self.labels), torch.full_like(self.ends, WORD_END)
        if told:
            asked = torch.cat([self.row_of, self.ends]), torch.cat([self.column_of, self.end_columns])
            logits = logits_of(lm.model, hidden[asked])
            rows = negative_log_likelihood(logits, torch.cat([self.labels, ended]), lm.word_ends)
            nll = nll.index_add(0, self.unit[self.row_of], rows[:told] * self.weights)
            weights = settings.end_weight * self.end_weights
            beside = beside.index_add(0, self.unit[self.ends], rows[told:] * weights)
            if settings.stop_said:
                own = logits.detach()[:told]
                wrong = own.gather(1, self.labels[:, None])[:, 0] < own.amax(dim=1)
                missed = missed.index_add(0, self.unit[self.row_of], wrong.float())
        if self.guard is not None and settings.kl_factor:
            now = logits_of(lm.model, hidden[self.guarded, 0]).float().log_softmax(dim=1)
            rows = (self.guard.exp() * (self.guard - now)).sum(dim=1)
            beside = beside.index_add(0, self.unit[self.guarded], settings.kl_factor * rows)
        return nll, beside, missed

    def keep(self, rows: Bool[Tensor, " rows"]) -> Chunk:
        """Return the chunk without the other rows."""
        kept = rows.nonzero().squeeze(1)
        new_index = torch.full_like(rows, -1, dtype=torch.long)
        new_index[kept] = torch.arange(len(kept), device=kept.device)
        targets, ends, guarded = rows[self.row_of], rows[self.ends], rows[self.guarded]
        return Chunk(
            self.start,
            self.ids[kept],
            self.mask[kept],
            self.positions[kept],
            self.states[kept],
            self.earlier[kept],
            self.before[kept],
            {layer: (k[kept], v[kept]) for layer, (k, v) in self.stored.items()},
            self.unit[kept],
            new_index[self.row_of[targets]],
            self.column_of[targets],
            self.labels[targets],
            self.weights[targets],
            new_index[self.ends[ends]],
            self.end_columns[ends],
            self.end_weights[ends],
            new_index[self.guarded[guarded]],
            None if self.guard is None else self.guard[guarded],
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A row up to where the search begins.

    Attributes:
        unit: which unit it belongs to.
        row: its tokens.
        weight: its weight in its unit.
        states: input of the first block that the search reaches.
    """

    unit: int
    row: Row
    weight: float
    states: Float[Tensor, "tokens d"]

    @property
    def tail(self) -> tuple[int, int]:
        """How many tokens run in the search, and how many there are."""
        return len(self.row.ids) - self.row.lookup, len(self.row.ids)


@torch.no_grad()
def draft(lm: LanguageModel, units: Sequence[Unit], batch_tokens: int, *, start: int) -> list[Draft]:
    """Run the blocks below `start` once, in the precision they have at the moment.

    Args:
        lm: the model.
        units: tokenised subjects; their rows share a weight of 1.
        batch_tokens: most tokens of one forward.
        start: the first block that the search reaches.
    """
    flat = [
        (number, row, 1.0 / max(1, sum(one.fact >= 0 for one in unit.rows)))
        for number, unit in enumerate(units)
        for row in unit.rows
    ]
    made: list[Draft] = []
    for group in _groups(
        sorted(flat, key=lambda item: len(item[1].ids)), batch_tokens, lambda item: len(item[1].ids)
    ):
        ids, mask, positions = activations.padded([row.ids for _, row, _ in group], lm.device)
        states = _states_after(lm, start - 1, ids, mask, positions)
        made += [
            Draft(number, row, weight, own[: len(row.ids)])
            for (number, row, weight), own in zip(group, states, strict=True)
        ]
    return made


def batched(lm: LanguageModel, drafts: Sequence[Draft], batch_tokens: int, *, start: int) -> list[Chunk]:
    """Put rows of like length together, those of guards apart.

    Args:
        lm: the model.
        drafts: the rows.
        batch_tokens: most tokens of one forward in the search.
        start: the first block that the search reaches.
    """
    told = sorted((one for one in drafts if one.row.fact >= 0), key=lambda one: one.tail)
    guards = sorted((one for one in drafts if one.row.fact < 0), key=lambda one: len(one.row.ids))
    groups = [*_groups(told, batch_tokens, _tail_length), *_groups(guards, batch_tokens, _tail_length)]
    return [_chunk(lm, group, start) for group in groups]


def in_turns(units: Sequence[Unit], turns: int) -> list[list[Unit]]:
    """Return the units of each turn: every `turns`-th context of each of their facts, and one at least."""
    return [[_in_turn(unit, turn, turns) for unit in units] for turn in range(turns)]


def fewer(unit: Unit, count: int) -> Unit:
    """Return the unit with so many contexts of each fact, the first among them; with all for a count of 1."""
    kept = [row for own in _by_fact(unit) for row in own[:: -(-len(own) // count) if count > 1 else 1]]
    return replace(unit, rows=tuple(kept))


def _in_turn(unit: Unit, turn: int, turns: int) -> Unit:
    return replace(unit, rows=tuple(row for own in _by_fact(unit) for row in own[turn % len(own) :: turns]))


def _by_fact(unit: Unit) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in unit.rows:
        found.setdefault(row.fact, []).append(row)
    return list(found.values())


def with_smaller_batches(units: Sequence[Unit], batch_tokens: int, attempt: Callable[..., Result]) -> Result:
    """Run `attempt` with a batch size, and again with half of it while memory runs out.

    Args:
        units: what it runs.
        batch_tokens: most tokens of one forward, to start with.
        attempt: does the work, called with `batch_tokens`.

    Raises:
        OutOfMemoryError: memory ran out with a single row in the batch.
    """
    longest = max((len(row.ids) for unit in units for row in unit.rows), default=0)
    while True:
        try:
            return attempt(batch_tokens=batch_tokens)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if batch_tokens <= longest:
                raise OutOfMemoryError(
                    "Memory ran out with a single sequence in the batch: use a smaller model or a "
                    "larger machine.",
                    batch_tokens=batch_tokens,
                ) from error
            batch_tokens //= 2
            log.warning("memory ran out: going on with batches of %d tokens", batch_tokens)


def require_finite(
    losses: Float[Tensor, " units"], active: Bool[Tensor, " units"], units: Sequence[Unit]
) -> None:
    """Refuse losses of active units that are not finite.

    Raises:
        NonFiniteError: names the subjects.
    """
    if not torch.isfinite(losses[active]).all():
        bad = [units[int(i)].subject_id for i in (active & ~torch.isfinite(losses)).nonzero()]
        raise NonFiniteError(
            f"The loss of {len(bad)} subject(s) is not finite ({', '.join(bad[:5])}): nothing was written.",
            where="targets",
            subjects=bad,
        )


def _tail_length(one: Draft) -> int:
    return one.tail[0]


def _groups(items: Sequence[Item], batch_tokens: int, length_of: Callable[[Item], int]) -> list[list[Item]]:
    """Cut items into runs of at most so many tokens, padding counted."""
    groups: list[list[Item]] = []
    widest = 0
    for item in items:
        length = length_of(item)
        if not groups or max(widest, length) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            widest = 0
        groups[-1].append(item)
        widest = max(widest, length)
    return groups


def _chunk(lm: LanguageModel, group: Sequence[Draft], start: int) -> Chunk:
    rows, device = [one.row for one in group], lm.device
    ids, _, positions = activations.padded([row.ids for row in rows], device)
    states = torch.nn.utils.rnn.pad_sequence([one.states for one in group], batch_first=True)
    cut = torch.tensor([row.lookup for row in rows], device=device)
    tails = torch.tensor([len(row.ids) for row in rows], device=device) - cut
    # Where no block is left to run, nothing looks back.
    before = int(cut.max()) if start < lm.layers.count else 0
    steps = torch.arange(int(tails.max()), device=device)
    index = cut[:, None] + steps
    safe = index.clamp(max=ids.shape[1] - 1)
    real = torch.cat([positions[:, :before] < cut[:, None], steps < tails[:, None]], dim=1)
    targets = [
        (number, one.row.first - one.row.lookup + offset, label, one.weight / len(one.row.labels))
        for number, one in enumerate(group)
        for offset, label in enumerate(one.row.labels)
    ]
    ends = [
        (number, one.row.end - one.row.lookup, one.weight)
        for number, one in enumerate(group)
        if one.row.end is not None
    ]
    return Chunk(
        start=start,
        ids=ids.gather(1, safe),
        mask=real.long(),
        positions=index,
        states=states.gather(1, safe[:, :, None].expand(-1, -1, states.shape[2])),
        earlier=ids[:, :before],
        before=states[:, :before],
        stored={},
        unit=torch.tensor([one.unit for one in group], device=device),
        row_of=torch.tensor([item[0] for item in targets], dtype=torch.long, device=device),
        column_of=torch.tensor([item[1] for item in targets], dtype=torch.long, device=device),
        labels=torch.tensor([item[2] for item in targets], dtype=torch.long, device=device),
        weights=torch.tensor([item[3] for item in targets], device=device),
        ends=torch.tensor([item[0] for item in ends], dtype=torch.long, device=device),
        end_columns=torch.tensor([item[1] for item in ends], dtype=torch.long, device=device),
        end_weights=torch.tensor([item[2] for item in ends], device=device),
        guarded=torch.tensor([i for i, row in enumerate(rows) if row.guard], dtype=torch.long, device=device),
        guard=None,
    )


def _states_after(lm: LanguageModel, layer: int, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Return the states after a block; before the first block there is nothing to hand over."""
    if layer < 0:
        return torch.zeros(*ids.shape, 0, device=lm.device)
    with activations.record(lm, states=[layer]) as (_, states):
        activations.run(lm, ids, mask, positions, stop_after=layer)
    return states[layer]

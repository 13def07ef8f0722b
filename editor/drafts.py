"""Rows on their way into chunks: parted into turns, run up to where a search begins, batched by length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.batching import groups
from editor.chunks import Chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.requests import Row, Unit

_LEAST_SHARE = 64
"""Tokens below which two forwards side by side take as long as one of both."""


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
    flat.sort(key=lambda item: len(item[1].ids))
    for group in groups(flat, batch_tokens, lambda item: len(item[1].ids)):
        ids, mask, positions = activations.padded([row.ids for _, row, _ in group], lm.device)
        states = _states_after(lm, start - 1, ids, mask, positions)
        made += [
            Draft(number, row, weight, own[: len(row.ids)])
            for (number, row, weight), own in zip(group, states, strict=True)
        ]
    return made


def batched(
    lm: LanguageModel, drafts: Sequence[Draft], batch_tokens: int, *, start: int, lanes: int = 1
) -> list[Chunk]:
    """Put rows of like length together, those of guards apart.

    Args:
        lm: the model.
        drafts: the rows.
        batch_tokens: most tokens of one forward in the search.
        start: the first block that the search reaches.
        lanes: how many chunks run side by side: few rows are shared out among them.
    """
    told = sorted((one for one in drafts if one.row.fact >= 0), key=lambda one: one.tail)
    guards = sorted((one for one in drafts if one.row.fact < 0), key=lambda one: len(one.row.ids))
    share = _shared_out(told, batch_tokens, lanes)
    return [
        _chunk(lm, group, start)
        for group in (*groups(told, share, _tail_length), *groups(guards, batch_tokens, _tail_length))
    ]


def in_turns(units: Sequence[Unit], turns: int) -> list[list[Unit]]:
    """Return the units of each turn: every `turns`-th context of each of their facts, and one at least.

    What guards (KL) does so in the first turn alone.
    """
    return [[_in_turn(unit, turn, turns) for unit in units] for turn in range(turns)]


def _in_turn(unit: Unit, turn: int, turns: int) -> Unit:
    by_fact: dict[int, list[Row]] = {}
    for row in unit.rows:
        by_fact.setdefault(row.fact, []).append(row)
    rows = [row for own in by_fact.values() for row in own[turn % len(own) :: turns]]
    if turn:  # contexts that are fewer than the turns come again, the guard does not
        rows = [replace(row, guard=False) if row.guard else row for row in rows if row.labels]
    return replace(unit, rows=tuple(rows))


def _shared_out(drafts: Sequence[Draft], batch_tokens: int, lanes: int) -> int:
    """Return the most tokens of a chunk: no more than give every lane one, where all fit into one each."""
    share = max(_LEAST_SHARE, sum(map(_tail_length, drafts)) // lanes)
    while lanes > 1 and share < batch_tokens:
        if sum(1 for _ in groups(drafts, share, _tail_length)) <= lanes:
            return share
        share += share // 16
    return batch_tokens


def _tail_length(one: Draft) -> int:
    return one.tail[0]


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
    return activations.run(lm, ids, mask, positions, stop_after=layer)

"""Rows of many subjects that run together, cut down to what depends on δ (`editor.targets`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor import activations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Row, Unit


@dataclass(slots=True)
class Chunk:
    """Rows that run together, cut down to what depends on δ.

    Attributes:
        ids: tokens from the subject's last on, padded on the right.
        mask: cached tokens, then these tokens; 1 where real.
        positions: of these tokens in their texts.
        states: output of the last edited block at these tokens.
        before: output of the last edited block at the tokens before; dropped once `stored` is made.
        stored: by layer above, keys and values of the tokens before the subject's last.
        unit: which unit a row belongs to.
        row_of, column_of: where targets are predicted, flattened.
        labels, weights: target token and its weight in the unit's mean.
        ends: rows whose word is to end after the target; their unit's weight is in `end_weights`.
        end_columns: where the target's last token stands in them.
        guarded: rows whose prediction right after the subject must not drift.
        guard: its log-probabilities as they were, one row a guarded row.
    """

    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows all_tokens"]
    positions: Int[Tensor, "rows tokens"]
    states: Float[Tensor, "rows tokens d"]
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

    def store_as(self, dtype: torch.dtype) -> None:
        """Hold the keys and values of earlier tokens in another precision."""
        self.stored = {layer: (k.to(dtype), v.to(dtype)) for layer, (k, v) in self.stored.items()}

    def keep(self, rows: Bool[Tensor, " rows"]) -> Chunk:
        """Return the chunk without the other rows."""
        kept = rows.nonzero().squeeze(1)
        new_index = torch.full_like(rows, -1, dtype=torch.long)
        new_index[kept] = torch.arange(len(kept), device=kept.device)
        targets, ends, guarded = rows[self.row_of], rows[self.ends], rows[self.guarded]
        return Chunk(
            self.ids[kept],
            self.mask[kept],
            self.positions[kept],
            self.states[kept],
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


def drafts(
    lm: LanguageModel, units: Sequence[Unit], settings: MemitSettings, batch_tokens: int
) -> list[Chunk]:
    """Cut rows into chunks of like length and run the blocks below once, in the model's own precision."""
    weights = [1.0 / max(1, sum(row.fact >= 0 for row in unit.rows)) for unit in units]
    flat = [(number, row, weights[number]) for number, unit in enumerate(units) for row in unit.rows]
    plain = sorted((item for item in flat if item[1].fact >= 0), key=_tail_length)
    guards = sorted((item for item in flat if item[1].fact < 0), key=lambda item: len(item[1].ids))
    groups = [*_groups(plain, batch_tokens), *_groups(guards, batch_tokens)]
    return [_draft(lm, group, settings) for group in groups]


def _tail_length(item: tuple[int, Row, float]) -> tuple[int, int]:
    row = item[1]
    return len(row.ids) - row.lookup, len(row.ids)


def _groups(items: list[tuple[int, Row, float]], batch_tokens: int) -> list[list[tuple[int, Row, float]]]:
    groups: list[list[tuple[int, Row, float]]] = []
    tail = 0
    for item in items:
        length = _tail_length(item)[0]
        if not groups or max(tail, length) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            tail = 0
        groups[-1].append(item)
        tail = max(tail, length)
    return groups


@torch.no_grad()
def _draft(lm: LanguageModel, group: list[tuple[int, Row, float]], settings: MemitSettings) -> Chunk:
    rows = [row for _, row, _ in group]
    device, last = lm.device, settings.layers[-1]
    ids, mask, positions = activations.padded([row.ids for row in rows], device)
    with activations.record(lm, states=[last]) as (_, states):
        activations.run(lm, ids, mask, positions, stop_after=last)
    lookups = torch.tensor([row.lookup for row in rows], device=device)
    tails = torch.tensor([len(row.ids) for row in rows], device=device) - lookups
    before = int(lookups.max())
    steps = torch.arange(int(tails.max()), device=device)
    index = lookups[:, None] + steps
    safe = index.clamp(max=ids.shape[1] - 1)
    real = torch.cat([positions[:, :before] < lookups[:, None], steps < tails[:, None]], dim=1)
    targets = [
        (number, row.first - row.lookup + offset, label, weight / len(row.labels))
        for number, (_, row, weight) in enumerate(group)
        for offset, label in enumerate(row.labels)
    ]
    ends = [
        (number, row.end - row.lookup, weight)
        for number, (_, row, weight) in enumerate(group)
        if row.end is not None
    ]
    return Chunk(
        ids=ids.gather(1, safe),
        mask=real.long(),
        positions=index,
        states=states[last].gather(1, safe[:, :, None].expand(-1, -1, lm.layers.d)),
        before=states[last][:, :before],
        stored={},
        unit=torch.tensor([number for number, _, _ in group], device=device),
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

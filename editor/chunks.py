"""Rows of many subjects that run together, cut down to what depends on the search, and what is asked of them.

What is searched acts at the subject's last token: on the state after the last edited block
(`editor.targets`) or on what the written blocks put there (`editor.refine`). So a chunk starts at that token
and at the first block that the search reaches; of the tokens before, keys and values are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from editor import activations
from editor.errors import NonFiniteError
from editor.keys import openings
from editor.layers import logits_of
from editor.likelihood import WORD_END, negative_log_likelihood
from editor.precision import dtype_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit


_COMPACT_BELOW = 0.75


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
        """Run the earlier tokens on the weights as they are, and keep their keys and values alone.

        What rows open with alike runs once: all openings first, then what follows them in each row.
        """
        width = self.earlier.shape[1]
        if not width:
            return
        heads, lead, shared = self._openings(width)
        steps = torch.arange(width, device=lm.device)
        length = self.mask[:, :width].sum(dim=1)
        opening = steps[: int(shared.max())]
        stored: dict[int, tuple[Tensor, Tensor]] = {}
        if len(opening):
            real = opening < shared[heads][:, None]
            stored = self._kept(lm, heads, opening.expand(len(heads), -1), real, stored)
            stored = {layer: (k[lead], v[lead]) for layer, (k, v) in stored.items()}
        index = shared[:, None] + steps[: int((length - shared).max())]
        real = torch.cat([opening < shared[:, None], index < length[:, None]], dim=1)
        if index.shape[1]:
            rows = torch.arange(len(self.ids), device=lm.device)
            stored = self._kept(lm, rows, index, real, stored)
        self.stored = stored
        self.mask = torch.cat([real.long(), self.mask[:, width:]], dim=1)
        self.earlier, self.before = self.earlier[:, :0].clone(), self.before[:, :0].clone()  # no views of all

    def _openings(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a row for each opening, the opening of each row, and how many tokens it shares."""
        lengths = self.mask[:, :width].sum(dim=1).tolist()
        texts = zip(self.earlier.tolist(), lengths, self.ids[:, 0].tolist(), strict=True)
        ordered = sorted(((*ids[:length], last), row) for row, (ids, length, last) in enumerate(texts))
        heads: list[int] = []
        lead, shared = [0] * len(ordered), [0] * len(ordered)
        for head, alike in openings(ordered):
            for _, row in alike:
                lead[row], shared[row] = len(heads), head
            heads.append(alike[0][1])
        found = [torch.tensor(each, device=self.ids.device) for each in (heads, lead, shared)]
        return found[0], found[1], found[2]

    def _kept(
        self,
        lm: LanguageModel,
        rows: Int[Tensor, " n"],
        index: Int[Tensor, "n tokens"],
        real: Bool[Tensor, "n all_tokens"],
        stored: dict[int, tuple[Tensor, Tensor]],
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Run some earlier tokens behind those that are stored; return keys and values of both."""
        safe = index.clamp(max=self.earlier.shape[1] - 1)
        cache = activations.cache_of(lm, stored) if stored else DynamicCache()
        activations.run(
            lm,
            self.earlier[rows[:, None], safe],
            real.long(),
            index,
            start=self.start,
            states=self.before[rows[:, None], safe].to(dtype_of(lm)),
            cache=cache,
        )
        return {
            layer: (cache.layers[layer].keys, cache.layers[layer].values)
            for layer in range(self.start, lm.layers.count)
        }

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
        earlier = self.mask.shape[1] > self.ids.shape[1]
        cache = activations.cache_of(lm, self.stored) if earlier else None
        return activations.run(
            lm,
            self.ids,
            self.mask,
            self.positions,
            start=self.start,
            states=states.to(dtype_of(lm)),
            cache=cache,
        )

    def losses(
        self, lm: LanguageModel, hidden: Float[Tensor, "rows tokens d"], count: int, settings: MemitSettings
    ) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"], Float[Tensor, " units"]]:
        """Return mean target NLL, weighted word end and KL, and missed tokens of every unit here.

        A token is missed where another is as likely; nobody looks unless `settings.stop_said` asks.

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
                # Not argmax, which takes as long as the product that makes the logits; a tie is a miss.
                wrong = (own >= own.gather(1, self.labels[:, None])).sum(dim=1) > 1
                missed = missed.index_add(0, self.unit[self.row_of], wrong.float())
        if self.guard is not None:
            now = logits_of(lm.model, hidden[self.guarded, 0]).float().log_softmax(dim=1)
            rows = (now.exp() * (now - self.guard)).sum(dim=1)
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


def compacted(chunks: Sequence[Chunk], active: Bool[Tensor, " units"]) -> list[Chunk]:
    """Leave out chunks of units that rest, and their rows of other chunks where they are many."""
    kept = []
    for chunk in chunks:
        rows = active[chunk.unit]
        if rows.any():
            kept.append(chunk.keep(rows) if float(rows.float().mean()) < _COMPACT_BELOW else chunk)
    return kept


def require_finite(
    losses: Float[Tensor, " units"], active: Bool[Tensor, " units"], units: Sequence[Unit], *, where: str
) -> None:
    """Refuse losses of active units that are not finite.

    Raises:
        NonFiniteError: names the subjects, and tells each one's loss.
    """
    if not torch.isfinite(losses[active]).all():
        bad = (active & ~torch.isfinite(losses)).nonzero().flatten().tolist()
        found = {units[number].subject_id: float(losses[number]) for number in bad}
        told = ", ".join(f"{subject} {loss}" for subject, loss in list(found.items())[:5])
        raise NonFiniteError(
            f"The loss of {len(bad)} subject(s) is not finite ({told}): nothing was written.",
            where=where,
            subjects=list(found),
            losses=found,
        )

"""Target states z of many edits at once.

z = h + δ, where h is the state at the subject's last token after the last edited block and δ is shared by
all contexts of a subject. δ minimises, per subject (Meng et al. 2022, eq. 16, with the terms of the
reference code):

    mean over contexts of  -log p(target | context, h + δ) / tokens
                           - end_weight · log p(the word ends | context, target, h + δ)
      + kl_factor · KL(p(· | subject, h) ‖ p(· | subject, h + δ))  +  weight_decay · ‖δ‖ / ‖h‖²
      + shift_cost · ‖δ‖ / ‖h‖

with ‖δ‖ ≤ clamp · ‖h‖ after each step, until all but the last term are below the stop. The loss is summed
over subjects, so rows stay independent and the result does not depend on what else is in the batch. Only
what depends on δ is run: blocks above the last edited one, tokens from the subject's last on (the keys and
values of those before are kept), logits at target positions; finished subjects leave.

Differs from the paper, where the settings ask for it (`editor.descent`): L-BFGS in place of Adam, and with
it a shift_cost, without which it goes far for the last of the loss.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from editor import activations
from editor.descent import RowAdam, RowLBFGS
from editor.errors import NonFiniteError, OutOfMemoryError
from editor.layers import logits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.descent import Descent
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Row, Unit

log = logging.getLogger(__name__)

SUBJECTS_AT_ONCE = 256
_COMPACT_BELOW = 0.75


@dataclass(slots=True)
class Targets:
    """Optimised states of some units.

    Attributes:
        shifts: δ, (units, d).
        losses: last mean negative log-likelihood of the targets, per unit (nats a token).
        steps: optimiser steps taken, per unit.
    """

    shifts: Float[Tensor, "units d"]
    losses: Float[Tensor, " units"]
    steps: Int[Tensor, " units"]


@dataclass(slots=True)
class _Chunk:
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

    def keep(self, rows: Bool[Tensor, " rows"]) -> _Chunk:
        """Return the chunk without the other rows."""
        kept = rows.nonzero().squeeze(1)
        new_index = torch.full_like(rows, -1, dtype=torch.long)
        new_index[kept] = torch.arange(len(kept), device=kept.device)
        targets, ends, guarded = rows[self.row_of], rows[self.ends], rows[self.guarded]
        return _Chunk(
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


def optimise(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Float[Tensor, "units d"],
    settings: MemitSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Targets:
    """Find the shift δ of every unit.

    Args:
        lm: the model, unchanged.
        units: tokenised subjects.
        anchors: h of each unit, the state whose norm bounds and scales δ.
        settings: how to optimise.
        progress: called with (finished units, units).

    Returns:
        The shifts, in float32.

    Raises:
        NonFiniteError: a loss is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    d = anchors.shape[1]
    result = Targets(
        torch.zeros(len(units), d, device=lm.device),
        torch.zeros(len(units), device=lm.device),
        torch.zeros(len(units), dtype=torch.long, device=lm.device),
    )
    done = 0
    for start in range(0, len(units), SUBJECTS_AT_ONCE):
        stop = min(start + SUBJECTS_AT_ONCE, len(units))

        def report(finished: int, before: int = done) -> None:
            if progress is not None:
                progress(before + finished, len(units))

        part = _with_smaller_batches(lm, units[start:stop], anchors[start:stop].float(), settings, report)
        result.shifts[start:stop], result.losses[start:stop], result.steps[start:stop] = (
            part.shifts,
            part.losses,
            part.steps,
        )
        done = stop
    return result


def _with_smaller_batches(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Tensor,
    settings: MemitSettings,
    report: Callable[[int], None],
) -> Targets:
    batch_tokens = settings.tokens_at_once(lm.device)
    while True:
        try:
            return _optimise_wave(lm, units, anchors, settings, batch_tokens=batch_tokens, report=report)
        except (torch.OutOfMemoryError, MemoryError) as error:
            longest = max(len(row.ids) for unit in units for row in unit.rows)
            if batch_tokens <= longest:
                raise OutOfMemoryError(
                    "Memory ran out with a single sequence in the batch: use a smaller model or a "
                    "larger machine.",
                    batch_tokens=batch_tokens,
                ) from error
            batch_tokens //= 2
            log.warning("memory ran out: going on with batches of %d tokens", batch_tokens)


def _optimise_wave(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Tensor,
    settings: MemitSettings,
    *,
    batch_tokens: int,
    report: Callable[[int], None],
) -> Targets:
    chunks = _drafts(lm, units, settings, batch_tokens)
    with lowered(lm, settings), activations.plain_attention(lm):
        for chunk in chunks:
            _complete(lm, chunk, settings)
        return _descend(lm, units, anchors, chunks, settings, report=report)


def _descend(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Tensor,
    chunks: list[_Chunk],
    settings: MemitSettings,
    *,
    report: Callable[[int], None],
) -> Targets:
    """Descend until every unit's loss is below the stop, or the steps are used up."""
    lengths = anchors.norm(dim=1)
    descent = _descent(lengths, anchors.shape[1], settings)
    decay = settings.weight_decay / lengths.square()
    cost = settings.shift_cost / lengths
    active = torch.ones(len(units), dtype=torch.bool, device=anchors.device)
    losses = torch.zeros(len(units), device=anchors.device)
    for _ in range(settings.steps + 1):
        point = descent.point
        nll, beside, gradient = _evaluate(lm, chunks, point, settings)
        size = point.norm(dim=1)
        total = nll + beside + decay * size
        _require_finite(total, active, units)
        # d/dδ of ‖δ‖, zero where δ is zero.
        gradient += (decay + cost)[:, None] * torch.nn.functional.normalize(point, dim=1)
        finished = active & (total < settings.stop_loss)
        taken = descent.step(total + cost * size, gradient, active, finished)
        losses = torch.where(taken, nll, losses)
        active = active & ~finished
        report(int((~active).sum()))
        if not active.any():
            break
        chunks = [_compact(chunk, active) for chunk in chunks if bool(active[chunk.unit].any())]
    return Targets(descent.value, losses, descent.steps)


def _descent(lengths: Float[Tensor, " units"], width: int, settings: MemitSettings) -> Descent:
    limit = settings.clamp * lengths
    if settings.optimiser == "adam":
        return RowAdam(limit, width, rate=settings.learning_rate)
    return RowLBFGS(limit, width, scale=lengths)


def _evaluate(
    lm: LanguageModel, chunks: Sequence[_Chunk], value: Tensor, settings: MemitSettings
) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"], Float[Tensor, "units d"]]:
    """Return the targets' NLL, what is asked beside it, and the gradient of their sum, per unit."""
    shift = value.detach().requires_grad_()
    count = len(value)
    nll, beside = torch.zeros(count, device=value.device), torch.zeros(count, device=value.device)
    gradient = torch.zeros_like(value)
    for chunk in chunks:
        chunk_nll, chunk_beside = _losses(lm, chunk, shift, count, settings)
        gradient += torch.autograd.grad((chunk_nll + chunk_beside).sum(), shift)[0]
        nll += chunk_nll.detach()
        beside += chunk_beside.detach()
    return nll, beside, gradient


def _require_finite(total: Tensor, active: Tensor, units: Sequence[Unit]) -> None:
    if not torch.isfinite(total[active]).all():
        bad = [units[int(i)].subject_id for i in (active & ~torch.isfinite(total)).nonzero()]
        raise NonFiniteError(
            f"The loss of {len(bad)} subject(s) is not finite ({', '.join(bad[:5])}): nothing was written.",
            where="targets",
            subjects=bad,
        )


def _compact(chunk: _Chunk, active: Tensor) -> _Chunk:
    rows = active[chunk.unit]
    return chunk.keep(rows) if float(rows.float().mean()) < _COMPACT_BELOW else chunk


def _losses(
    lm: LanguageModel, chunk: _Chunk, shift: Tensor, count: int, settings: MemitSettings
) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
    """Return mean target NLL, and weighted word end and KL, of every unit that has rows in this chunk."""
    hidden = _run_above(lm, chunk, shift, settings)
    nll = beside = torch.zeros(count, device=shift.device)
    if len(chunk.labels):
        logits = logits_of(lm.model, hidden[chunk.row_of, chunk.column_of])
        rows = torch.nn.functional.cross_entropy(logits.float(), chunk.labels, reduction="none")
        nll = nll.index_add(0, chunk.unit[chunk.row_of], rows * chunk.weights)
    if len(chunk.ends):
        logs = logits_of(lm.model, hidden[chunk.ends, chunk.end_columns]).float().log_softmax(dim=1)
        rows = -logs[:, lm.word_ends].logsumexp(dim=1)
        weights = settings.end_weight * chunk.end_weights
        beside = beside.index_add(0, chunk.unit[chunk.ends], rows * weights)
    if chunk.guard is not None and settings.kl_factor:
        now = logits_of(lm.model, hidden[chunk.guarded, 0]).float().log_softmax(dim=1)
        rows = (chunk.guard.exp() * (chunk.guard - now)).sum(dim=1)
        beside = beside.index_add(0, chunk.unit[chunk.guarded], settings.kl_factor * rows)
    return nll, beside


def _run_above(lm: LanguageModel, chunk: _Chunk, shift: Tensor | None, settings: MemitSettings) -> Tensor:
    states = chunk.states
    if shift is not None:
        first = states[:, :1] + shift[chunk.unit][:, None].to(states.dtype)
        states = torch.cat([first, states[:, 1:]], dim=1)
    length = chunk.mask.shape[1] - chunk.ids.shape[1]
    cache = activations.cache_of(lm, chunk.stored, batch=len(chunk.ids), length=length) if length else None
    hidden = activations.run(
        lm,
        chunk.ids,
        chunk.mask,
        chunk.positions,
        start=settings.layers[-1] + 1,
        states=states.to(_dtype_of(lm)),
        cache=cache,
    )
    if hidden is None:
        raise NonFiniteError("The forward above the edited layers gave no state.", where="targets")
    return hidden


def _dtype_of(lm: LanguageModel) -> torch.dtype:
    """Return the precision in which the blocks above run at the moment: that of the head."""
    return lm.model.get_output_embeddings().weight.dtype  # type: ignore[no-any-return, operator]


@contextmanager
def lowered(lm: LanguageModel, settings: MemitSettings) -> Iterator[None]:
    """Hold everything but the blocks up to the last edited one in bfloat16, where that is asked for and pays.

    The float32 weights are put back as the same tensors on leaving, so nothing is rounded for good. Casting
    once beats autocast, which casts every weight at every step (a quarter of a step on a CPU with AMX).

    Args:
        lm: the model.
        settings: `precision` and `layers`.
    """
    wanted = settings.precision
    if wanted == "auto":
        wanted = "bfloat16" if _fast_bfloat16(lm.device) else "float32"
    kept: set[int] = set()
    for layer in range(settings.layers[-1] + 1):
        kept.update(id(p) for p in lm.layers.block(lm.model, layer).parameters())
    casts = [p for p in lm.model.parameters() if id(p) not in kept and p.dtype == torch.float32]
    saved: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        for parameter in casts if wanted == "bfloat16" else []:
            saved.append((parameter, parameter.data))
            parameter.data = parameter.data.to(torch.bfloat16)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - torch has no public question for this yet


def _drafts(
    lm: LanguageModel, units: Sequence[Unit], settings: MemitSettings, batch_tokens: int
) -> list[_Chunk]:
    """Cut rows into chunks of like length and run the blocks below once, in the model's own precision."""
    weights = [1.0 / max(1, sum(row.fact >= 0 for row in unit.rows)) for unit in units]
    flat = [(number, row, weights[number]) for number, unit in enumerate(units) for row in unit.rows]
    plain = sorted((item for item in flat if item[1].fact >= 0), key=_tail_length)
    guards = sorted((item for item in flat if item[1].fact < 0), key=lambda item: len(item[1].ids))
    groups = [*_groups(plain, batch_tokens), *_groups(guards, batch_tokens)]
    return [_draft(lm, group, settings) for group in groups]


@torch.no_grad()
def _complete(lm: LanguageModel, chunk: _Chunk, settings: MemitSettings) -> None:
    """Run what lies above and does not depend on δ: keys and values of earlier tokens, the KL reference."""
    start, length = settings.layers[-1] + 1, chunk.before.shape[1]
    if length and start < lm.layers.count:
        cache = DynamicCache()
        activations.run(
            lm,
            chunk.ids[:, :1].expand(-1, length),
            chunk.mask[:, :length],
            torch.arange(length, device=lm.device).expand(len(chunk.ids), -1),
            start=start,
            states=chunk.before.to(_dtype_of(lm)),
            cache=cache,
        )
        above = range(start, lm.layers.count)
        chunk.stored = {layer: (cache.layers[layer].keys, cache.layers[layer].values) for layer in above}
    else:
        chunk.mask = chunk.mask[:, length:]
    chunk.before = chunk.before[:, :0]
    if len(chunk.guarded) and settings.kl_factor:
        hidden = _run_above(lm, chunk, None, settings)
        chunk.guard = logits_of(lm.model, hidden[chunk.guarded, 0]).float().log_softmax(dim=1)


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
def _draft(lm: LanguageModel, group: list[tuple[int, Row, float]], settings: MemitSettings) -> _Chunk:
    rows = [row for _, row, _ in group]
    device, last = lm.device, settings.layers[-1]
    ids, mask, positions = padded([row.ids for row in rows], device)
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
    return _Chunk(
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


def padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
    """Pad token rows on the right.

    Args:
        rows: token ids.
        device: where to put the result.

    Returns:
        Ids (0 where padded), mask and positions.
    """
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[number, : len(row)] = 1
    positions = torch.arange(longest).expand(len(rows), -1).contiguous()
    return ids.to(device), mask.to(device), positions.to(device)

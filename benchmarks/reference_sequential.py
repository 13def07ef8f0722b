"""The published procedure for one target state, transcribed plainly: the yardstick for speed and exactness.

One edit at a time; every look runs the whole model on every position of the seven sequences, and the head
twice: as part of the model, for the KL sequence, and again on every position of the others, for the targets.
The last look takes no step. Not part of the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editor.layers import logits_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit


def target_shift(lm: LanguageModel, unit: Unit, settings: MemitSettings) -> tuple[torch.Tensor, int, float]:
    """Optimise the shift of one subject as the reference code does.

    Args:
        lm: the model.
        unit: the subject's sequences, the KL sequence last.
        settings: steps, rate, clamp, decay, KL factor, stop.

    Returns:
        The shift (d,), the number of optimiser steps, and the targets' last mean negative log-likelihood.
    """
    rows, last = list(unit.rows), settings.layers[-1]
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = 1
        for offset, label in enumerate(row.labels):
            labels[number, row.first + offset] = label
    lookups = torch.tensor([row.lookup for row in rows])
    shift = torch.zeros(lm.layers.d, requires_grad=True)
    kept: dict[str, torch.Tensor] = {}

    def add(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        states = output[0] if isinstance(output, tuple) else output
        if "anchor" not in kept:
            kept["anchor"] = states[0, lookups[0]].detach().clone()
        moved = states.clone()
        for number, at in enumerate(lookups.tolist()):
            moved[number, at] = moved[number, at] + shift
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    optimiser = torch.optim.Adam([shift], lr=settings.learning_rate)
    steps = 0
    for step in range(settings.steps + 1):
        handle = lm.layers.block(lm.model, last).register_forward_hook(add)
        out = lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        handle.remove()
        guard = out.logits[-1, lookups[-1]].log_softmax(dim=0)
        if "guard" not in kept:
            kept["guard"] = guard.detach().clone()
        logs = logits_of(lm.model, out.hidden_states[-1][:-1]).log_softmax(dim=2)
        wanted = labels[:-1] != -100
        chosen = logs.gather(2, labels[:-1].clamp(min=0)[:, :, None])[:, :, 0] * wanted
        nll = -(chosen.sum(dim=1) / wanted.sum(dim=1)).mean()
        divergence = torch.nn.functional.kl_div(kept["guard"], guard, log_target=True, reduction="sum")
        decay = settings.weight_decay * shift.norm() / kept["anchor"].norm() ** 2
        loss = nll + settings.kl_factor * divergence + decay
        if float(loss.detach()) < settings.stop_loss or step == settings.steps:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        with torch.no_grad():
            limit = settings.clamp * kept["anchor"].norm()
            if shift.norm() > limit:
                shift.mul_(limit / shift.norm())
    return shift.detach(), steps, float(nll.detach())

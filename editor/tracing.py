"""Causal tracing (Meng et al. 2022, ROME, section 2): where a model recalls what it knows about a subject.

The subject's embeddings are corrupted with noise, which breaks the answer; then the feed-forward outputs of
a few blocks are put back to their clean values at one token, and what that brings back of the answer's
probability is the indirect effect of those blocks there. MEMIT edits the blocks where the effect at the
subject's last token peaks.

Differs: windows that reach the first block are drawn and not chosen. What it adds to a token depends on
hardly anything but the token, so to put it back is to put the subject back, whatever later blocks recall: in
SmolLM2-135M it alone brings back as much as any window does (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from editor.errors import RequestError
from editor.layers import backbone, logits_of
from editor.requests import encode, encode_prompt, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.progress import Progress

PLACES = ("first subject token", "last subject token", "token after", "last token")
_LAST_SUBJECT = 1
_NOISE = 3.0
_SAMPLE = 4096
_SUGGESTED = 5


@dataclass(frozen=True, slots=True)
class Trace:
    """Mean indirect effects over some prompts.

    Attributes:
        effects: probability of the answer brought back, (places, layers).
        clean: mean probability of the answer without corruption.
        corrupted: mean probability with it.
        prompts: how many prompts were counted.
        window: how many blocks were put back at once.
    """

    effects: Float[Tensor, "places layers"]
    clean: float
    corrupted: float
    prompts: int
    window: int

    def suggest(self) -> tuple[int, ...]:
        """Return five neighbouring layers that end where the effect at the subject's last token peaks.

        They are fewer where the peak lies lower.
        """
        row = self.effects[_LAST_SUBJECT]
        highest = max(0, len(row) - 2)
        # The first centre whose window leaves the first block out.
        start = min(self.window // 2 + 1, highest)
        last = min(start + int(row[start:].argmax()), highest)
        first = max(0, last - _SUGGESTED + 1)
        return tuple(range(first, last + 1))

    def heat_map(self, path: Path, *, layers: Sequence[int] = ()) -> None:
        """Draw the effects.

        Args:
            path: PNG file to write.
            layers: layers to mark as chosen.
        """
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.effects.cpu().numpy(), aspect="auto", cmap="Purples", vmin=0)
        axes.set_yticks(range(len(PLACES)), PLACES)
        axes.set_xlabel(f"block ({self.window} put back around it)")
        axes.set_title(
            f"answer brought back, {self.prompts} prompts ({self.corrupted:.2f} of {self.clean:.2f} left)"
        )
        if layers:
            axes.axvspan(min(layers) - 0.5, max(layers) + 0.5, fill=False, edgecolor="crimson", linewidth=2)
        figure.colorbar(image, ax=axes, label="probability")
        figure.savefig(path, dpi=120)


@torch.no_grad()
def trace(
    lm: LanguageModel,
    prompts: Sequence[tuple[str, str]],
    *,
    window: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Trace where a model's own answers come from.

    Args:
        lm: the model.
        prompts: (template, subject) pairs; what the model says next is the answer that is traced.
        window: how many blocks are put back at once; a sixth of all by default, as in the paper's 10 of 48.
        progress: called with ("trace", done, total).

    Returns:
        The mean effects.

    Raises:
        RequestError: no prompts.
    """
    if not prompts:
        raise RequestError("Tracing needs at least one prompt.")
    width = window or max(1, lm.layers.count // 6)
    embedded = _embedded(lm)
    scale = _NOISE * float(embedded.std())
    generator = torch.Generator(device=lm.device).manual_seed(0)
    effects = torch.zeros(len(PLACES), lm.layers.count)
    clean_sum = corrupted_sum = 0.0
    for number, (template, subject) in enumerate(prompts):
        ids, span = _tokens(lm, template, subject)
        noise = scale * torch.randn(len(span), embedded.shape[1], generator=generator, device=lm.device)
        outputs, probabilities = _clean(lm, ids)
        answer = int(probabilities.argmax())
        bad = _probability(lm, ids, answer, (span, noise), {}, rows=1)
        clean_sum += float(probabilities[answer])
        corrupted_sum += float(bad[0])
        places = (span[0], span[-1], min(span[-1] + 1, ids.shape[1] - 1), ids.shape[1] - 1)
        for place, at in enumerate(places):
            patch = _windows(lm, outputs, at, width)
            effects[place] += (
                _probability(lm, ids, answer, (span, noise), patch, rows=lm.layers.count) - bad
            ).cpu()
        if progress is not None:
            progress("trace", number + 1, len(prompts))
    count = len(prompts)
    return Trace(effects / count, clean_sum / count, corrupted_sum / count, count, width)


def _embedded(lm: LanguageModel) -> Float[Tensor, "tokens d"]:
    """Return tokens as blocks see them: some families (Gemma) scale the rows of the table on their way."""
    embed = lm.model.get_input_embeddings()  # type: ignore[operator]
    step = max(1, len(embed.weight) // _SAMPLE)
    with torch.no_grad():
        rows: Tensor = embed(torch.arange(0, len(embed.weight), step, device=lm.device)).float()
    return rows


def _tokens(lm: LanguageModel, template: str, subject: str) -> tuple[Int[Tensor, "1 tokens"], list[int]]:
    """Return a prompt's tokens and the indices of its subject's tokens."""
    prompt = encode_prompt(lm.tokenizer, template, subject)
    text, stop = render(template, subject)
    start = stop - len(subject.strip())
    _, offsets = encode(lm.tokenizer, text)
    span = [i for i, (a, b) in enumerate(offsets) if b > start and i <= prompt.lookup and b > a]
    return torch.tensor([prompt.ids], device=lm.device), span or [prompt.lookup]


def _clean(lm: LanguageModel, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Run once and keep every feed-forward output."""
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(lm.layers.count):

            def keep(_module: object, _args: object, output: Tensor, at: int = layer) -> None:
                kept[at] = output.detach().reshape(ids.shape[1], -1).clone()

            stack.callback(lm.layers.writer(lm.model, layer).register_forward_hook(keep).remove)
        probabilities = _last(lm, ids)[0]
    return kept, probabilities


def _windows(
    lm: LanguageModel, outputs: dict[int, Tensor], at: int, width: int
) -> dict[int, tuple[int, int, int, Tensor]]:
    """For each layer: the rows (centres) whose window covers it, the token, and its clean output there."""
    patch = {}
    for layer in range(lm.layers.count):
        first = max(0, layer - (width - 1) // 2)
        last = min(lm.layers.count - 1, layer + width // 2)
        patch[layer] = (first, last + 1, at, outputs[layer][at])
    return patch


def _probability(
    lm: LanguageModel,
    ids: Tensor,
    answer: int,
    corruption: tuple[list[int], Tensor],
    patch: dict[int, tuple[int, int, int, Tensor]],
    *,
    rows: int,
) -> Float[Tensor, " rows"]:
    """Return the answer's probability with a corrupted subject, one row a patched window."""
    with _corrupted(lm, *corruption), ExitStack() as stack:
        for layer, (first, stop, at, clean) in patch.items():

            def put_back(
                _module: object,
                _args: object,
                output: Tensor,
                place: tuple[int, int, int] = (first, stop, at),
                value: Tensor = clean,
            ) -> Tensor:
                changed = output.reshape(rows, ids.shape[1], -1).clone()
                changed[place[0] : place[1], place[2]] = value
                return changed.reshape(output.shape)

            stack.callback(lm.layers.writer(lm.model, layer).register_forward_hook(put_back).remove)
        return _last(lm, ids.expand(rows, -1))[:, answer]


@contextmanager
def _corrupted(lm: LanguageModel, span: list[int], noise: Tensor) -> Iterator[None]:
    def add(_module: object, _args: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, span] += noise.to(output.dtype)
        return changed

    handle = lm.model.get_input_embeddings().register_forward_hook(add)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def _last(lm: LanguageModel, ids: Tensor) -> Float[Tensor, "rows vocab"]:
    """Return next-token probabilities after the last token."""
    hidden = backbone(lm.model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return logits_of(lm.model, hidden.last_hidden_state[:, -1]).float().softmax(dim=1)

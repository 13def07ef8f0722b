"""Uncentred second moments C = E[k kᵀ] of the keys of a model: what its own memories weigh in the solve.

All layers in one streamed pass. A fraction of a percent of the reference's 44 million keys serves (FastMEMIT,
ACL 2025: 2 to 10 times d_k of them; what more are worth is in benchmarks/RESULTS.md, "Second moments").
Where no corpus is at hand, text sampled from the model itself serves (docs/log.md).

Whether the tokens suffice is measured: with C of nine rows of ten and F of the tenth, a change that the solve
takes to cost a unit on the text costs on other text, in the mean over directions,

    tr(C⁻¹ F) / d_k

units: 1 for endless text, N / (N - d_k - 1) for N normal keys, more for keys of text (`Moments.excess`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from editor import activations
from editor.errors import CorruptStateError, MomentsMismatchError, NonFiniteError
from editor.keys import KeyReader
from editor.layers import logits_of
from editor.precision import lowered, resolved
from editor.requests import encode_prompt
from editor.state import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.model import LanguageModel

    Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)

DEFAULT_TOKENS = 60_000
"""Forty times the width of SmolLM2's keys. On fewer, many edits find directions that this text happens not to
use and other text does: 200 edits cost 7.2 % of perplexity at 15,000, 4.3 % at 60,000 (docs/log.md)."""
_SAMPLED_ROWS = 128
_SAMPLED_LENGTH = 120
_BATCH_TOKENS = 4096
_WIDE = 8192
_HELD_OUT = 10
_FEW = 0.25


@dataclass(frozen=True, slots=True)
class MomentsKey:
    """All that second moments depend on.

    Attributes:
        model: digest of the unedited weights.
        layers: which blocks.
        corpus: digest of the texts, or "sampled in" and the precision.
        tokens: how many keys were counted.
        seed: of the sampling; 0 for a corpus.
        dtype: of the weights that made the keys.
        guards: digest of the guarded prompts, or "" for none.
        guard_share: their weight against the text's.
    """

    model: str
    layers: tuple[int, ...]
    corpus: str
    tokens: int
    seed: int
    dtype: str
    guards: str = ""
    guard_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Guards:
    """Keys of prompts whose answers should stay, as the unedited model has them.

    A guard counts in the solve like a live edit that asks for what the model gives anyway. Once its own
    subject is edited it steps aside, and it comes back when that subject is retracted; `editor.memit` sees
    to both.

    Attributes:
        subjects: subject text of each key.
        keys: by layer, (n, d_k).
        values: by layer, (n, d): what the unedited matrix gives.
    """

    subjects: tuple[str, ...]
    keys: dict[int, Float[Tensor, "n d_k"]]
    values: dict[int, Float[Tensor, "n d"]]


@dataclass(slots=True)
class Moments:
    """Second moments of some layers of one model.

    Attributes:
        key: what they were made from.
        matrices: by layer, (d_k, d_k) float32.
        guards: keys to hold in place besides; None for none.
        excess: by how much more other text is changed than the solve reckons with, as a share; the largest of
            the layers. Infinite where tokens are fewer than a key is wide; None where it was not measured.
    """

    key: MomentsKey
    matrices: dict[int, Float[Tensor, "d_k d_k"]]
    guards: Guards | None = None
    excess: float | None = None

    @classmethod
    def compute(
        cls,
        lm: LanguageModel,
        texts: Sequence[str] | None,
        layers: Sequence[int],
        *,
        tokens: int = DEFAULT_TOKENS,
        seed: int = 0,
        guards: Sequence[tuple[str, str]] = (),
        guard_share: float = 1.0,
        progress: Progress | None = None,
    ) -> Moments:
        """Measure in one pass over all layers.

        Text alone says little about the keys that edits are nearest to: those of other subjects in the same
        templates. Guards protect them: the solve adds share · λ · E_guards[k kᵀ] to λ · E_text[k kᵀ].

        Args:
            lm: the unedited model.
            texts: a corpus, read in order until `tokens` are counted; None samples text from the model
                itself.
            layers: which blocks.
            tokens: how many keys to count at most.
            seed: of the sampling.
            guards: (template, subject) pairs whose answers should stay; the same all through a model's life.
            guard_share: their weight against the text.
            progress: called with (stage, tokens done, tokens).

        Returns:
            The moments.

        Raises:
            NonFiniteError: a key is not finite.
        """
        if texts is None:
            rows = sample(lm, tokens, seed=seed, progress=progress)
            corpus = f"sampled in {resolved('auto', lm.device)}"
        else:
            rows = _corpus_rows(lm, texts, tokens)
            corpus, seed = digest_of(list(texts)), 0
        counted = sum(len(row) for row in rows)
        matrices, excess = _measured(lm, rows, tuple(layers), progress)
        dtype = str(next(lm.model.parameters()).dtype)
        key = MomentsKey(lm.digest, tuple(layers), corpus, counted, seed, dtype)
        held = None
        if guards and guard_share:
            key = replace(key, guards=digest_of([list(pair) for pair in guards]), guard_share=guard_share)
            held = _guards(lm, guards, tuple(layers))
        if excess is not None and excess > _FEW:
            log.warning(
                "%d tokens are few for keys %d wide: a change would touch other text %.0f%% more than the "
                "solve reckons with; measure the second moments on more",
                counted,
                lm.layers.d_k,
                100 * excess,
            )
        return cls(key, matrices, held, excess)

    def require(self, lm: LanguageModel, layers: Sequence[int]) -> None:
        """Refuse to serve another model or other layers.

        Raises:
            MomentsMismatchError: made from another model, or a layer is missing.
        """
        if self.key.model != lm.digest:
            raise MomentsMismatchError(
                "The second moments were measured on another model: compute them again for this one.",
                expected=lm.digest,
                got=self.key.model,
            )
        missing = sorted(set(layers) - set(self.matrices))
        if missing:
            raise MomentsMismatchError(
                f"The second moments lack the layers {missing}: compute them again with these layers.",
                missing=missing,
            )

    def layer(self, layer: int, device: torch.device | str = "cpu") -> Float[Tensor, "d_k d_k"]:
        """Return C of one layer."""
        return self.matrices[layer].to(device)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(descriptor)
        try:
            tensors = {f"layer{layer}": matrix.cpu().contiguous() for layer, matrix in self.matrices.items()}
            subjects = list(self.guards.subjects) if self.guards else []
            if self.guards is not None:
                for layer in self.matrices:
                    tensors[f"guard_keys{layer}"] = self.guards.keys[layer].contiguous()
                    tensors[f"guard_values{layer}"] = self.guards.values[layer].contiguous()
            header = {**asdict(self.key), "subjects": subjects, "excess": self.excess}
            save_file(tensors, scratch, metadata={"key": json.dumps(header, sort_keys=True)})
            Path(scratch).replace(path)
        finally:
            Path(scratch).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote.

        Raises:
            CorruptStateError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                key = json.loads((file.metadata() or {})["key"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            subjects, excess = tuple(key.pop("subjects", ())), key.pop("excess", None)
            made = MomentsKey(**{**key, "layers": tuple(key["layers"])})
            matrices = {layer: tensors[f"layer{layer}"] for layer in made.layers}
            guards = None
            if subjects:
                keys = {layer: tensors[f"guard_keys{layer}"] for layer in made.layers}
                guards = Guards(
                    subjects, keys, {layer: tensors[f"guard_values{layer}"] for layer in made.layers}
                )
            return cls(made, matrices, guards, excess)
        except Exception as error:
            raise CorruptStateError(
                f"{path} holds no second moments ({error}): delete it to compute them anew."
            ) from error


@torch.no_grad()
def sample(
    lm: LanguageModel, tokens: int, *, seed: int = 0, progress: Progress | None = None
) -> list[list[int]]:
    """Sample text from the model at temperature 1, many rows at once with cached keys and values.

    Where bfloat16 is faster it is sampled so: any text of the model's serves.

    Args:
        lm: the model.
        tokens: about how many tokens.
        seed: equal seeds give equal text on one machine.
        progress: called with ("sample", tokens done, tokens).

    Returns:
        Rows of token ids, each beginning with an everyday opening of a sentence.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    openings = [lm.tokenizer(line)["input_ids"] for line in _openings()]
    rows: list[list[int]] = []
    while sum(len(row) for row in rows) < tokens:
        missing = tokens - sum(len(row) for row in rows)
        count = min(_SAMPLED_ROWS, -(-missing // _SAMPLED_LENGTH))
        starts = [list(openings[(len(rows) + i) % len(openings)]) for i in range(count)]

        def report(done: int, before: int = len(rows) * _SAMPLED_LENGTH, width: int = count) -> None:
            if progress is not None:
                progress("sample", min(tokens, before + done * width), tokens)

        with lowered(lm, "auto"):
            rows += continue_texts(lm, starts, _SAMPLED_LENGTH, generator=generator, progress=report)
    return rows


@torch.no_grad()
def continue_texts(
    lm: LanguageModel,
    starts: Sequence[Sequence[int]],
    length: int,
    *,
    generator: torch.Generator | None,
    top_k: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue many texts at once.

    Args:
        lm: the model.
        starts: token ids to continue.
        length: tokens per text, its start included; for starts of unlike lengths the new tokens are equal
            in number.
        generator: samples at temperature 1; None takes the likeliest token.
        top_k: samples among so many likeliest tokens; None among all.
        progress: called with the tokens done per row.

    Returns:
        The starts with their continuations.
    """
    ids, mask, positions = activations.padded(starts, lm.device)
    lengths = mask.sum(dim=1)
    cache = DynamicCache()
    rows = torch.arange(len(starts), device=lm.device)
    hidden = activations.run(lm, ids, mask, positions, cache=cache)
    new: list[Tensor] = []
    for step in range(length - ids.shape[1]):
        last = hidden[rows, lengths - 1] if step == 0 and hidden is not None else hidden[:, 0]  # type: ignore[index]
        logits = logits_of(lm.model, last).float()
        if top_k is not None:
            least = logits.topk(top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        token = _choose(logits, generator)
        new.append(token)
        mask = torch.cat([mask, mask.new_ones(len(starts), 1)], dim=1)
        hidden = activations.run(lm, token[:, None], mask, (lengths + step)[:, None], cache=cache)
        if progress is not None:
            progress(ids.shape[1] + step + 1)
    grown = torch.stack(new, dim=1).tolist() if new else [[] for _ in starts]
    return [[*start, *more] for start, more in zip(starts, grown, strict=True)]


def _choose(logits: Float[Tensor, "rows vocab"], generator: torch.Generator | None) -> Int[Tensor, " rows"]:
    if generator is None:
        return logits.argmax(dim=1)
    # The exponential race: the same law as sampling from the softmax, without its cumulative sums.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(dim=1)


def sample_prefixes(lm: LanguageModel, count: int, *, seed: int = 0, length: int = 10) -> tuple[str, ...]:
    """Sample the paper's random contexts: short texts to put before a template.

    Args:
        lm: the model.
        count: how many.
        seed: equal seeds give equal prefixes on one machine; keep the texts, not the seed.
        length: tokens of each.

    Returns:
        Prefixes, each ending in a full stop.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    starts = [list(lm.tokenizer(word)["input_ids"]) for word in ("The", "Therefore", "Because", "I", "You")]
    chosen = [starts[i % len(starts)] for i in range(count)]
    rows = continue_texts(lm, chosen, length, generator=generator) if chosen else []
    texts = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    # A brace would read as a second place for the subject.
    return tuple(" ".join(text.replace("{", " ").replace("}", " ").split()) + "." for text in texts)


def _guards(lm: LanguageModel, pairs: Sequence[tuple[str, str]], layers: tuple[int, ...]) -> Guards:
    texts: dict[tuple[int, ...], str] = {}
    for template, subject in pairs:
        prompt = encode_prompt(lm.tokenizer, template, subject)
        texts.setdefault(prompt.ids[: prompt.lookup + 1], subject)
    reader = KeyReader(lm, list(texts), layers)
    keys = {layer: reader.read(layer)[0].float().cpu() for layer in layers}
    values = {
        layer: (keys[layer].double() @ lm.layers.matrix(lm.model, layer).double().cpu().T).float()
        for layer in layers
    }
    return Guards(tuple(texts.values()), keys, values)


def _openings() -> list[str]:
    text = resources.files("editor").joinpath("openings.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def _corpus_rows(lm: LanguageModel, texts: Sequence[str], tokens: int) -> list[list[int]]:
    longest = min(1024, int(getattr(lm.model.config, "max_position_embeddings", 1024) or 1024))
    rows: list[list[int]] = []
    total = 0
    for text in texts:
        ids = lm.tokenizer(text, truncation=True, max_length=longest)["input_ids"][: tokens - total]
        if ids:
            rows.append(list(ids))
            total += len(ids)
        if total >= tokens:
            break
    return rows


def _measured(
    lm: LanguageModel, rows: Sequence[Sequence[int]], layers: tuple[int, ...], progress: Progress | None
) -> tuple[dict[int, Float[Tensor, "d_k d_k"]], float | None]:
    """Return C of all rows by layer, and the excess of some over the rest."""
    total = sum(len(row) for row in rows)

    def after(before: int) -> Progress | None:
        return None if progress is None else lambda stage, done, _: progress(stage, before + done, total)

    fresh = rows[::_HELD_OUT]
    rest = [row for number, row in enumerate(rows) if number % _HELD_OUT]
    share = sum(len(row) for row in fresh) / max(1, total)
    F = _accumulate(lm, fresh, layers, after(0))
    if not rest:
        return F, None
    C = _accumulate(lm, rest, layers, after(round(share * total)))
    excess = max(_excess(C[layer], F[layer]) for layer in layers)
    return {layer: torch.lerp(C[layer], F[layer], share) for layer in layers}, excess


def _excess(C: Float[Tensor, "d_k d_k"], F: Float[Tensor, "d_k d_k"]) -> float:
    """Return tr(C⁻¹ F) / d_k - 1."""
    lower, info = torch.linalg.cholesky_ex(C.double())
    if int(info):
        return math.inf
    return float(torch.cholesky_solve(F.double(), lower).diagonal().mean()) - 1


@torch.no_grad()
def _accumulate(
    lm: LanguageModel, rows: Sequence[Sequence[int]], layers: tuple[int, ...], progress: Progress | None
) -> dict[int, Float[Tensor, "d_k d_k"]]:
    exact = torch.float64 if lm.layers.d_k <= _WIDE else torch.float32
    sums = {
        layer: torch.zeros(lm.layers.d_k, lm.layers.d_k, dtype=exact, device=lm.device) for layer in layers
    }
    ordered = sorted(rows, key=len)
    done, total = 0, sum(len(row) for row in rows)
    while ordered:
        width = max(1, _BATCH_TOKENS // max(1, len(ordered[-1])))
        group, ordered = ordered[-width:], ordered[:-width]
        ids, mask, positions = activations.padded(group, lm.device)
        with activations.record(lm, keys=layers) as (keys, _):
            activations.run(lm, ids, mask, positions, stop_after=max(layers))
        for layer in layers:
            found = keys[layer].float().reshape(*ids.shape, -1)[mask.bool()]
            sums[layer] += (found.T @ found).to(exact)
        done += int(mask.sum())
        if progress is not None:
            progress("moments", done, total)
    for layer, matrix in sums.items():
        if not torch.isfinite(matrix).all():
            raise NonFiniteError(
                f"A key at layer {layer} is not finite: check the model.", where="moments", layer=layer
            )
    return {layer: (matrix / max(1, total)).float().cpu() for layer, matrix in sums.items()}

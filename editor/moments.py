"""Uncentred second moments C = E[k kᵀ] of the keys of a model: what its own memories weigh in the solve.

All layers in one streamed pass, which stops when it has read enough and goes on where it was interrupted. A
fraction of a percent of the reference's 44 million keys serves (FastMEMIT, ACL 2025: 2 to 10 times d_k of
them; what more are worth is in benchmarks/RESULTS.md, "Second moments"). Where no corpus is at hand, text
sampled from the model itself serves (`editor.sampling`).

Whether it is enough is measured: with C of nine rows of ten and F of the tenth, a change that the solve takes
to cost a unit on the text costs on other text, in the mean over directions,

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from editor import activations
from editor.errors import CorruptStateError, MomentsMismatchError, NonFiniteError
from editor.guards import Guards, measured
from editor.precision import resolved
from editor.sampling import sampled
from editor.state import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel

    Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)

ENOUGH = 0.15
"""Excess at which the pass stops. On fewer tokens many edits find directions that this text happens not to
use and other text does: 200 edits cost SmolLM2 7.2 % of perplexity at an excess of 0.43, 4.3 % at 0.14."""
_MOST = 40
"""Tokens at most, as a multiple of d_k; SmolLM2 needs nearly as many (benchmarks/RESULTS.md)."""
_BETWEEN = 4
"""Tokens between one look at the excess and the next, as a multiple of d_k."""
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


@dataclass(slots=True)
class Moments:
    """Second moments of some layers of one model.

    Attributes:
        key: what they were made from.
        matrices: by layer, (d_k, d_k) float32.
        guards: keys to hold in place besides; None for none.
        excess: by how much more other text of the kind is changed than the solve reckons with, as a share;
            the largest of the layers. Infinite where tokens are fewer than a key is wide; None where it was
            not measured.
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
        tokens: int | None = None,
        enough: float = ENOUGH,
        seed: int = 0,
        guards: Sequence[tuple[str, str]] = (),
        guard_share: float = 1.0,
        part: Path | None = None,
        progress: Progress | None = None,
    ) -> Moments:
        """Measure in one pass over all layers, until other text is foreseen well enough.

        Text alone says little about the keys that edits are nearest to: those of other subjects in the same
        templates. Guards protect them: the solve adds share · λ · E_guards[k kᵀ] to λ · E_text[k kᵀ].

        Args:
            lm: the unedited model.
            texts: a corpus, read in order; None samples text from the model itself.
            layers: which blocks.
            tokens: how many keys to count at most; None takes forty times the width of one.
            enough: the excess at which no more of a corpus is counted; 0 counts all. Sampled text is all
                counted: it foresees itself sooner than other text (12 % at 29,180 tokens of SmolLM2's, where
                Wikipedia is touched by a third more than reckoned with).
            seed: of the sampling.
            guards: (template, subject) pairs whose answers should stay; the same all through a model's life.
            guard_share: their weight against the text.
            part: a file in which the pass is kept while it runs: after an interrupt the next call goes on
                from there. The caller removes it once the moments are saved.
            progress: called with (stage, tokens done, tokens).

        Returns:
            The moments.

        Raises:
            NonFiniteError: a key is not finite.
        """
        most = tokens or _MOST * lm.layers.d_k
        dtype = str(next(lm.model.parameters()).dtype)
        if texts is None:
            corpus, enough = f"sampled in {resolved('auto', lm.device)}", 0.0
        else:
            corpus, seed = digest_of(list(texts)), 0
        key = MomentsKey(lm.digest, tuple(layers), corpus, 0, seed, dtype)
        sums = _Sums.kept_in(part, key) or _Sums.nothing(key, lm.layers.d_k)
        seen = sums.tokens
        batches = (
            sampled(lm, most, seed=seed, start=sums.rows, progress=progress)
            if texts is None
            else _tokenised(lm, texts, most, start=sums.rows)
        )
        while not (seen and sums.suffice(enough, lm.device)):
            for rows in batches:  # goes on where the last look at the excess left it
                sums.add(lm, rows, most, progress)
                if sums.tokens - seen >= _BETWEEN * lm.layers.d_k:
                    break
            else:
                break
            seen = sums.tokens
            if part is not None:
                sums.save(part)
        found = cls(replace(key, tokens=sums.tokens), sums.mean(), excess=sums.excess(lm.device))
        if guards and guard_share:
            held = digest_of([list(pair) for pair in guards])
            found.key = replace(found.key, guards=held, guard_share=guard_share)
            found.guards = measured(lm, guards, tuple(layers))
        found.warn_of_few()
        return found

    def warn_of_few(self) -> None:
        """Log a warning where the tokens do not suffice."""
        if self.excess is not None and self.excess > _FEW:
            log.warning(
                "%d tokens are few for keys %d wide: a change would touch other text %.0f%% more than the "
                "solve reckons with; measure the second moments on more",
                self.key.tokens,
                len(self.matrices[self.key.layers[0]]),
                100 * self.excess,
            )

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
        tensors = {f"layer{layer}": matrix for layer, matrix in self.matrices.items()}
        if self.guards is not None:
            for layer in self.matrices:
                tensors[f"guard_keys{layer}"] = self.guards.keys[layer]
                tensors[f"guard_values{layer}"] = self.guards.values[layer]
        subjects = list(self.guards.subjects) if self.guards else []
        _write(path, tensors, {**asdict(self.key), "subjects": subjects, "excess": self.excess})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote.

        Raises:
            CorruptStateError: the file is missing or damaged.
        """
        try:
            tensors, key = _read(path)
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


@dataclass(slots=True)
class _Sums:
    """Σ k kᵀ of what was counted so far: of every tenth row (F) apart from the rest (C).

    Attributes:
        key: what is counted.
        matrices: by layer, C and F, (2, d_k, d_k).
        counts: tokens of C and of F.
        rows: of both.
    """

    key: MomentsKey
    matrices: dict[int, Float[Tensor, "2 d_k d_k"]]
    counts: list[int]
    rows: int = 0

    @classmethod
    def nothing(cls, key: MomentsKey, d_k: int) -> _Sums:
        """Return the sums before the first row."""
        dtype = torch.float64 if d_k <= _WIDE else torch.float32
        return cls(key, {layer: torch.zeros(2, d_k, d_k, dtype=dtype) for layer in key.layers}, [0, 0])

    @classmethod
    def kept_in(cls, path: Path | None, key: MomentsKey) -> _Sums | None:
        """Return what `save` wrote for the same key; None where there is no such file, or a damaged one."""
        if path is None or not path.exists():
            return None
        try:
            tensors, header = _read(path)
            counts, rows = header.pop("counts"), header.pop("rows")
            if header != json.loads(json.dumps(asdict(key))):
                return None
            return cls(key, {layer: tensors[f"layer{layer}"] for layer in key.layers}, counts, rows)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the pass can begin anew
            log.warning("%s cannot be read (%s): the second moments are measured from the start", path, error)
            return None

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        tensors = {f"layer{layer}": matrices for layer, matrices in self.matrices.items()}
        _write(path, tensors, {**asdict(self.key), "counts": self.counts, "rows": self.rows})

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return sum(self.counts)

    def add(self, lm: LanguageModel, rows: Sequence[Sequence[int]], most: int, tell: Progress | None) -> None:
        """Count the keys of further rows.

        Raises:
            NonFiniteError: a key is not finite.
        """
        parts: tuple[list[Sequence[int]], list[Sequence[int]]] = ([], [])
        for number, row in enumerate(rows, start=self.rows):
            parts[number % _HELD_OUT == 0].append(row)
        for which, part in enumerate(parts):
            for layer, found in _summed(lm, part, self.key.layers).items():
                self.matrices[layer][which] += found
            self.counts[which] += sum(len(row) for row in part)
        self.rows += len(rows)
        if tell is not None:
            tell("moments", self.tokens, most)

    def suffice(self, enough: float, device: torch.device) -> bool:
        """Return whether the excess is small enough; never for an `enough` of 0."""
        excess = self.excess(device) if enough else None
        return excess is not None and excess <= enough

    def excess(self, device: torch.device) -> float | None:
        """Return the largest tr(C⁻¹ F) / d_k - 1 of the layers; None before both have rows."""
        rest, fresh = self.counts
        if not rest or not fresh:
            return None
        return max(_excess(C.to(device) / rest, F.to(device) / fresh) for C, F in self.matrices.values())

    def mean(self) -> dict[int, Float[Tensor, "d_k d_k"]]:
        """Return E[k kᵀ] of all rows, by layer."""
        return {layer: (C + F).div_(max(1, self.tokens)).float() for layer, (C, F) in self.matrices.items()}


def _excess(C: Float[Tensor, "d_k d_k"], F: Float[Tensor, "d_k d_k"]) -> float:
    """Return tr(C⁻¹ F) / d_k - 1."""
    lower, info = torch.linalg.cholesky_ex(C.double())
    if int(info):
        return math.inf
    return float(torch.cholesky_solve(F.double(), lower).diagonal().mean()) - 1


@torch.no_grad()
def _summed(
    lm: LanguageModel, rows: Sequence[Sequence[int]], layers: tuple[int, ...]
) -> dict[int, Float[Tensor, "d_k d_k"]]:
    """Return Σ k kᵀ over all tokens of some rows, by layer."""
    exact = torch.float64 if lm.layers.d_k <= _WIDE else torch.float32
    sums = {
        layer: torch.zeros(lm.layers.d_k, lm.layers.d_k, dtype=exact, device=lm.device) for layer in layers
    }
    ordered = sorted(rows, key=len)
    while ordered:
        width = max(1, _BATCH_TOKENS // max(1, len(ordered[-1])))
        group, ordered = ordered[-width:], ordered[:-width]
        ids, mask, positions = activations.padded(group, lm.device)
        with activations.record(lm, keys=layers) as (keys, _):
            activations.run(lm, ids, mask, positions, stop_after=max(layers))
        for layer in layers:
            found = keys[layer].float().reshape(*ids.shape, -1)[mask.bool()]
            sums[layer] += (found.T @ found).to(exact)
    for layer, matrix in sums.items():
        if not torch.isfinite(matrix).all():
            raise NonFiniteError(
                f"A key at layer {layer} is not finite: check the model.", where="moments", layer=layer
            )
    return {layer: matrix.cpu() for layer, matrix in sums.items()}


def _tokenised(
    lm: LanguageModel, texts: Sequence[str], tokens: int, *, start: int
) -> Iterator[list[list[int]]]:
    """Yield the rows of a corpus, some at a time, from one on; no more tokens than wanted."""
    longest = min(1024, int(getattr(lm.model.config, "max_position_embeddings", 1024) or 1024))
    rows: list[list[int]] = []
    number = total = size = 0
    for text in texts:
        ids = lm.tokenizer(text, truncation=True, max_length=longest)["input_ids"][: tokens - total]
        if ids:
            total += len(ids)
            number += 1
            if number > start:
                rows.append(list(ids))
                size += len(ids)
        if size >= 4 * _BATCH_TOKENS:
            yield rows
            rows, size = [], 0
        if total >= tokens:
            break
    if rows:
        yield rows


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Write tensors and a header as one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, scratch, metadata={"key": json.dumps(header, sort_keys=True)})
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of what `_write` wrote."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})["key"])
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118

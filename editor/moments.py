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

import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from editor import drift
from editor.digests import digest_of
from editor.drift import Texts
from editor.errors import CorruptStateError, MomentsMismatchError
from editor.guards import Guards, measured
from editor.precision import resolved
from editor.sampling import everyday_openings, sampled
from editor.sums import Sums, packed, read, tokenised, unpacked, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.progress import Progress

log = logging.getLogger(__name__)

ENOUGH = 0.15
"""Excess at which the pass stops. On fewer tokens many edits find directions that this text happens not to
use and other text does: 200 edits cost SmolLM2 7.2 % of perplexity at an excess of 0.43, 4.3 % at 0.14."""
_MOST = 40
"""Tokens at most, as a multiple of d_k; SmolLM2 needs nearly as many (benchmarks/RESULTS.md)."""
_BETWEEN = 4
"""Tokens between one look at the excess and the next, as a multiple of d_k."""
_FEW = 0.25


@dataclass(frozen=True, slots=True)
class MomentsKey:
    """All that second moments depend on.

    Attributes:
        model: digest of the unedited weights.
        layers: which blocks.
        corpus: digest of the texts and of how they become tokens; for sampled ones, of what they begin with,
            and how they were sampled and in which precision.
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
        texts: some of the text, in pieces, whose states edits are to leave alone (`editor.drift`); None holds
            nothing.
    """

    key: MomentsKey
    matrices: dict[int, Float[Tensor, "d_k d_k"]]
    guards: Guards | None = None
    excess: float | None = None
    texts: Texts | None = None

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
            begun = digest_of([lm.tokens_digest, everyday_openings()])
            corpus, enough = f"sampled by inversion in {resolved('auto', lm.device)} from {begun}", 0.0
        else:
            corpus, seed = digest_of([lm.tokens_digest, *texts]), 0
        key = MomentsKey(lm.digest, tuple(layers), corpus, most, seed, dtype)
        sums = Sums.kept_in(part, key) or Sums.nothing(key, lm.layers.d_k)
        seen = sums.tokens
        batches = (
            sampled(lm, most, seed=seed, start=sums.rows, progress=progress)
            if texts is None
            else tokenised(lm, texts, most, start=sums.rows)
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
        found = cls(
            replace(key, tokens=sums.tokens),
            sums.mean(),
            excess=sums.excess(lm.device),
            texts=drift.measured(lm, sums.texts, max(layers)),
        )
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
                "%d tokens are few for keys %d wide: a change would touch other text %s more than the solve "
                "reckons with; measure the second moments on more",
                self.key.tokens,
                len(self.matrices[self.key.layers[0]]),
                "far" if math.isinf(self.excess) else f"{100 * self.excess:.0f}%",
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
        if self.texts is not None:
            tensors["texts"], tensors["text_states"] = packed(self.texts.rows), self.texts.states
        if self.guards is not None:
            for layer in self.matrices:
                tensors[f"guard_keys{layer}"] = self.guards.keys[layer]
                tensors[f"guard_values{layer}"] = self.guards.values[layer]
        subjects = list(self.guards.subjects) if self.guards else []
        write(path, tensors, {**asdict(self.key), "subjects": subjects, "excess": self.excess})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote.

        Raises:
            CorruptStateError: the file is missing or damaged.
        """
        try:
            tensors, key = read(path)
            subjects, excess = tuple(key.pop("subjects")), key.pop("excess")
            made = MomentsKey(**{**key, "layers": tuple(key["layers"])})
            matrices = {layer: tensors[f"layer{layer}"] for layer in made.layers}
            guards = None
            if subjects:
                keys = {layer: tensors[f"guard_keys{layer}"] for layer in made.layers}
                guards = Guards(
                    subjects, keys, {layer: tensors[f"guard_values{layer}"] for layer in made.layers}
                )
            texts = None
            if "texts" in tensors:
                rows = tuple(unpacked(tensors["texts"]))
                texts = Texts(rows, max(made.layers), tensors["text_states"])
            return cls(made, matrices, guards, excess, texts)
        except Exception as error:
            raise CorruptStateError(
                f"{path} holds no second moments ({error}): delete it to compute them anew."
            ) from error

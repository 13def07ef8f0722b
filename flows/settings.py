"""Everything that can be configured, read once from the environment.

Every setting is an environment variable `FACTSYNC_<NAME>` or a line of `<home>/factsync.env`. Nothing below
`flows/` reads the environment: it takes arguments.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dotenv.parser import parse_stream
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from flows.errors import SettingsError
from kb.endpoint import Layout
from kb.errors import BadTermError
from kb.model import entity_id
from kb.trust import Trust

S = TypeVar("S", bound=BaseSettings)

EMBEDDED = "embedded"
"""The value of `endpoint` that means: the local store under the home folder."""

_HELP = "Correct it or leave it out; `factsync settings` then lists what each one takes."
_ALIKE = 0.8
"""How much a name must be like a setting's to be taken for a slip of it, 1 being the same."""


class GateThresholds(BaseSettings):
    """The bounds a candidate checkpoint must keep; `flows.gates` says what each one protects."""

    model_config = SettingsConfigDict(env_prefix="FACTSYNC_GATE_", extra="ignore")

    efficacy: float = Field(
        0.95, ge=0, le=1, description="share of tonight's edit prompts with P(new) > P(old)"
    )
    exact: float = Field(
        0.80, ge=0, le=1, description="share of tonight's facts said word for word on their first prompt"
    )
    heldback: float = Field(0.80, ge=0, le=1, description="success share on phrasings nobody trained")
    retention: float = Field(
        0.95, ge=0, le=1, description="share of sampled older live facts still preferred"
    )
    neighbours: float = Field(
        0.85, ge=0, le=1, description="share of neighbour prompts that prefer their own answer to tonight's"
    )
    perplexity: float = Field(0.08, ge=0, description="largest rise over the base model on held-out text")


class Settings(BaseSettings):
    """One home's settings.

    Two homes never touch: ledger, checkpoints, models, second moments, the local store and Prefect's own
    database all lie under `home`.
    """

    model_config = SettingsConfigDict(env_prefix="FACTSYNC_", extra="ignore")

    home: Path = Field(Path(".factsync"), description="folder that holds all state")
    ledger_url: str | None = Field(None, description="database URL, or a SQLite file; unset: one under home")
    model: str = Field("smollm2", description="`smollm2` (the bundled one), a local folder or a hub name")
    model_name: str | None = Field(None, description="the model's name in the ledger; unset: from `model`")
    device: str | None = Field(
        None, description="`cpu`, `cuda` or `cuda:1`; unset: cuda where there is one, else cpu"
    )
    endpoint: str = Field(EMBEDDED, description="SPARQL endpoint URL, or `embedded`")
    endpoint_attempts: int = Field(5, ge=1, le=20, description="tries of one request before giving up")
    endpoint_timeout_s: float = Field(70.0, gt=0, description="deadline of one request, to its last byte")
    endpoint_parallel: int = Field(
        1, ge=1, le=5, description="requests at once; Wikidata allows five a client"
    )
    endpoint_layout: Layout = Field(
        Layout.MUNGED,
        description="`munged` as in Wikidata's service, or `dump` as in QLever's and raw RDF dumps",
    )
    entity_data: str | None = Field(
        None,
        description="URL of a Special:EntityData to read statements from; `endpoint` finds what changed",
    )
    wikibase: str | None = Field(None, description="concept base URL of another Wikibase; unset: Wikidata")
    wikibase_properties: dict[str, str] = Field(
        default_factory=dict,
        description='its property ids as JSON, such as {"start": "P5"}; unset: Wikidata\'s',
    )
    languages: Annotated[list[str], NoDecode] = Field(
        default_factory=lambda: ["en", "mul", "en-*"], description="label chain; `en-*` is any English"
    )
    contact: str | None = Field(
        None, description="e-mail or URL for the User-Agent; live services require it"
    )
    relations_file: Path | None = Field(
        None, description="relations.toml merged over the shipped one; of another Wikibase, alone"
    )
    relations: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="property ids, separated by commas; empty: all that are described"
    )
    since: datetime | None = Field(
        None, description="the first sync discovers what changed since; unset: since Wikidata's first day"
    )
    corpus: Path | None = Field(
        None, description="text file for the second moments; unset: text from the model"
    )
    heldout: Path | None = Field(
        None, description="text file for perplexity, a passage a line; unset: a dozen shipped ones"
    )
    moment_tokens: int | None = Field(
        None, ge=1_000, description="most tokens for the second moments; unset: as many as they need"
    )
    retention_sample: int = Field(60, ge=0, description="older live facts checked each night")
    max_edits: int = Field(10_000, ge=1, description="most edits in one night; the rest stays owed")
    max_lag_hours: float = Field(24.0, gt=0, description="a source further behind than this is refused")
    isolate_tries: int = Field(
        6, ge=0, le=100, description="edits tried to find the facts that fail a batch; 0 leaves all owed"
    )
    burst_share: float = Field(0.25, gt=0, le=1, description="a relation changing more than this share waits")
    burst_floor: int = Field(50, ge=0, description="so many changes of a relation are never too many")
    burst_total: int = Field(10_000, ge=1, description="where a night changes more, all that changes waits")
    trust_min_sightings: int = Field(2, ge=1, description="pulls that must have seen a value")
    trust_min_references: int = Field(
        0, ge=0, description="facts with fewer references that name a source are held back"
    )
    trust_flip_hold_hours: int = Field(168, ge=0, description="hold of a value that went and came back")
    trust_flip_memory_hours: int = Field(720, ge=0, description="how long a value that went is remembered")
    trust_relabel_hold_hours: int = Field(1_440, ge=0, description="hold of a subject that reads differently")
    trust_allow_subjects: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="items believed at once; never exempt from conflicts"
    )
    trust_block_subjects: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="items whose facts are never edited"
    )
    trust_block_relations: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="relations that are read and never edited"
    )
    trust_block_values: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="items that are never edited in as objects"
    )
    trust_bad_words: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="further words that no label may hold"
    )
    approval_hours: float = Field(72.0, gt=0, description="a candidate undecided for so long is rejected")
    rebuild_nights: int = Field(
        10, ge=0, description="rebuild from the base after so many promoted checkpoints; 0: never"
    )
    rebuild_norm: float | None = Field(
        None, gt=0, description="rebuild when the edited weights are further from the base's than this share"
    )
    rebuild_retention: float | None = Field(
        None, gt=0, le=1, description="rebuild when a night's retention is below this share"
    )
    prefect_port: int = Field(4200, ge=1, le=65535, description="port of the Prefect server of `factsync up`")
    ui: Literal["v1", "v2"] = Field(
        "v1", description="Prefect's interface; v2 asks for a vendor's script, which its pages then forbid"
    )
    crash_at: str | None = Field(None, description="kill this process at a named point (for tests)")
    gates: GateThresholds = Field(default_factory=GateThresholds)

    @field_validator(
        "relations",
        "languages",
        "trust_allow_subjects",
        "trust_block_subjects",
        "trust_block_relations",
        "trust_block_values",
        "trust_bad_words",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator(
        "trust_allow_subjects", "trust_block_subjects", "trust_block_relations", "trust_block_values"
    )
    @classmethod
    def _ids(cls, value: list[str]) -> list[str]:
        try:
            return [entity_id(one) for one in value]
        except BadTermError as error:
            # pydantic reports ValueErrors; a misspelt id in a block list must not pass for no id
            raise ValueError(str(error)) from error

    @field_validator("model")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():  # as a folder, it would be the home itself
            raise ValueError("it is empty, and takes `smollm2`, a local folder or a hub name")
        return value

    @field_validator("device")
    @classmethod
    def _form_of_a_device(cls, value: str | None) -> str | None:
        # Only its form: whether this machine has it asks torch, which takes seconds to load.
        if value and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            raise ValueError(f"{value!r} is no device; it takes cpu, cuda or cuda:1 (the second one)")
        return value or None

    @field_validator("since")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)

    @classmethod
    def read(cls, home: Path | None = None) -> Settings:
        """Read the environment and `<home>/factsync.env`. Relative paths count from the home folder.

        Args:
            home: overrides `FACTSYNC_HOME`.

        Raises:
            SettingsError: a variable has a value that does not fit, names a file that is not there, or is
                misspelt, or a line of the file is none; the message names it.
        """
        root = _expanded("FACTSYNC_HOME", home or _home()).absolute()
        file = root / "factsync.env"
        _refuse_misspelt(file)
        # Settings of another prefix do not inherit the file: the gates read it for themselves.
        found = _read(cls, file, home=root, gates=_read(GateThresholds, file))
        # A worker runs in a folder of its own.
        for name in ("relations_file", "corpus", "heldout"):
            path = getattr(found, name)
            if path is not None:
                variable = f"FACTSYNC_{name.upper()}"
                setattr(found, name, _file(variable, root / _expanded(variable, path)))
        folder = root / _expanded("FACTSYNC_MODEL", Path(found.model))
        if found.model.startswith("~") or folder.is_dir():
            found.model = str(folder)
        return found

    def require_embedded(self, command: str) -> None:
        """Refuse a command that fills the local store and syncs from it where another source is set.

        Raises:
            SettingsError: `endpoint` is not `embedded`.
        """
        if not self.is_embedded:
            raise SettingsError(
                f"`factsync {command}` plays the local store of a home, and this one syncs from "
                f"{self.endpoint}: unset FACTSYNC_ENDPOINT, and take another home "
                f"(`factsync --home FOLDER {command}`)."
            )

    @property
    def resolved_ledger_url(self) -> str:
        """The ledger's SQLAlchemy URL; a SQLite file's path counts from the home folder.

        Raises:
            LedgerUrlError: what is set names no ledger.
            SettingsError: its file is in the home of a user whom there is not.
        """
        if not self.ledger_url:
            return f"sqlite:///{self.home / 'ledger.db'}"
        # SQLAlchemy, which commands that open no ledger do without.
        from storage.database import parse_url, sqlite_path  # noqa: PLC0415

        url = parse_url(self.ledger_url)
        path = sqlite_path(url)
        if path is None:
            return self.ledger_url
        file = self.home / _expanded("FACTSYNC_LEDGER_URL", path)
        return url.set(database=str(file)).render_as_string(hide_password=False)

    @property
    def resolved_model_name(self) -> str:
        """The model's name in the ledger: its last path component unless given."""
        return self.model_name or Path(self.model).name.lower()

    @property
    def trust(self) -> Trust:
        """How much to believe; each relation's own hold stands in the relations file."""
        return Trust(
            min_sightings=self.trust_min_sightings,
            flip_hold_hours=self.trust_flip_hold_hours,
            flip_memory_hours=self.trust_flip_memory_hours,
            relabel_hold_hours=self.trust_relabel_hold_hours,
            min_references=self.trust_min_references,
            burst_share=self.burst_share,
            burst_floor=self.burst_floor,
            burst_total=self.burst_total,
            allow_subjects=frozenset(self.trust_allow_subjects),
            block_subjects=frozenset(self.trust_block_subjects),
            block_properties=frozenset(self.trust_block_relations),
            block_values=frozenset(self.trust_block_values),
            bad_words=frozenset(self.trust_bad_words),
        )

    @property
    def is_embedded(self) -> bool:
        """Whether the knowledge base is the local store under `home`."""
        return self.endpoint == EMBEDDED

    @property
    def checkpoints_dir(self) -> Path:
        """Content-addressed checkpoint folders."""
        return self.home / "checkpoints"

    @property
    def models_dir(self) -> Path:
        """Converted base models."""
        return self.home / "models"

    @property
    def moments_dir(self) -> Path:
        """Second moments, one file a key."""
        return self.home / "moments"

    @property
    def memit_file(self) -> Path:
        """How to edit this home's model, as a calibration found it; absent: the model's preset."""
        return self.home / "memit.json"

    @property
    def store_dir(self) -> Path:
        """The local SPARQL store."""
        return self.home / "store"

    @property
    def prefect_dir(self) -> Path:
        """Prefect's own database and logs."""
        return self.home / "prefect"


def _read(kind: type[S], file: Path, **given: Any) -> S:  # noqa: ANN401  fields of the kind
    try:
        return kind(_env_file=file, **given)
    except ValidationError as error:
        first = error.errors()[0]
        name = kind.model_config["env_prefix"] + "_".join(str(part) for part in first["loc"]).upper()
        said = first["msg"].removeprefix("Value error, ")  # of pydantic, before a validator's own words
        raise SettingsError(f"{name}: {said}. {_HELP}") from error
    except UnreadableError as error:  # of a field that is written as JSON
        raise SettingsError(f"{error}: it takes JSON. {_HELP}") from error


def _home() -> Path:
    named = os.environ.get("FACTSYNC_HOME", ".factsync")
    if not named.strip():  # as a folder, it would be whatever the command is run in
        raise SettingsError("FACTSYNC_HOME is empty: name a folder, or unset it for `.factsync`.")
    return Path(named)


def _refuse_misspelt(file: Path) -> None:
    """Refuse names that are nearly a setting's: what somebody meant to block must not pass for unset.

    Other names under the prefix are let be, since an image or a script may have variables of its own; but
    gates are ours alone, and one that is not asked would let through what it was set to stop.

    Raises:
        SettingsError: names the setting that was meant, or the gates that there are.
    """
    gates = {f"GATE_{name.upper()}" for name in GateThresholds.model_fields}
    known = {name.upper() for name in Settings.model_fields if name != "gates"} | gates
    for name in (*os.environ, *_written_in(file)):
        own = name.upper().removeprefix("FACTSYNC_")
        if own == name.upper() or own in known:
            continue
        near = difflib.get_close_matches(own, known, n=1, cutoff=_ALIKE)
        if near:
            raise SettingsError(f"{name} is no setting: did you mean FACTSYNC_{near[0]}?")
        if own.startswith(("GATE_", "GATES")):
            listed = ", ".join(f"FACTSYNC_{gate}" for gate in sorted(gates))
            raise SettingsError(f"{name} is no setting: the gates are {listed}.")


def _written_in(file: Path) -> list[str]:
    """The names in a home's file.

    Raises:
        SettingsError: the file, or a line of it, cannot be read; left to themselves the readers of such files
            log that and go on without the line.
    """
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read ({error}): write it as UTF-8 text.") from error
    names = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and binding.value is None):
            read = binding.original.string
            line = binding.original.line + read[: len(read) - len(read.lstrip())].count("\n")
            # The line itself is not shown: it may hold a password.
            raise SettingsError(
                f"{file}, line {line} is no setting: write FACTSYNC_NAME=value, with both quotes where there "
                "is one, or begin the line with # to leave it out."
            )
        if binding.key:
            names.append(binding.key)
    return names


def _expanded(name: str, path: Path) -> Path:
    """Put a user's home in place of `~` or `~user`."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{name} is {path}: there is no such user here, name the folder.") from error


def _file(name: str, path: Path) -> Path:
    if not path.is_file():
        raise SettingsError(f"{name}: there is no file {path}; a relative path counts from the home folder.")
    return path

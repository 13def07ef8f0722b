"""The embedded knowledge base: PyPI's ``oxigraph`` server over a folder, on loopback.

A store keeps whole states. Loading builds a new state beside the old one and then turns one small file to it,
so a reader sees the old state or the new one and never a mixture, and a load that dies half-way changes
nothing:

    FOLDER/current            the name of the state that counts
    FOLDER/state-…/           one RocksDB folder of oxigraph
    FOLDER/state-….json       what was loaded into it: file names and SHA-256
    FOLDER/state-….lock       held shared while a server reads the state
    FOLDER/load.lock          held by the one process that loads

The server is read-only, answers on 127.0.0.1 alone, and ends when its context ends or this process does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kb.errors import StoreError
from kb.serving import ENVIRONMENT, Server, StorePortTakenError, StoreStartError, claim_port, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LocalStore",
    "Night",
    "StoreBinaryMissingError",
    "StoreEmptyError",
    "StoreLoadError",
    "StorePortTakenError",
    "StoreStartError",
    "UnknownNightError",
    "nights",
]

logger = logging.getLogger(__name__)

SAMPLE: Final = Path(__file__).parent / "sample"

_FORMATS: Final = {".ttl": "ttl", ".nt": "nt"}
_PORT_ATTEMPTS: Final = 5


class StoreBinaryMissingError(StoreError):
    """The oxigraph program is not where we looked."""


class StoreLoadError(StoreError):
    """A file could not be loaded; the store holds what it held before."""


class StoreEmptyError(StoreError):
    """Nothing was ever loaded into this folder."""


class UnknownNightError(StoreError):
    """The shipped sample has no night of this number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Night:
    """One night of the shipped sample.

    Attributes:
        number: 1 for the first.
        reference_time: The moment a sync of this night takes place, as ``kb.semantics`` wants it.
        path: The complete state of the knowledge base at that moment, in Turtle.
    """

    number: int
    reference_time: datetime
    path: Path


def nights() -> dict[int, Night]:
    """The nights of the shipped sample, by number."""
    table = tomllib.loads((SAMPLE / "nights.toml").read_text(encoding="utf-8"))
    return {
        int(row["number"]): Night(
            number=int(row["number"]),
            reference_time=row["reference_time"].astimezone(UTC),
            path=SAMPLE / row["file"],
        )
        for row in table["night"]
    }


class LocalStore:
    """A folder of knowledge and the server that answers from it.

    Args:
        folder: Where the states are kept; made when missing.
        binary: The oxigraph program. By default the one beside this Python, else the one on the path.
    """

    def __init__(self, folder: Path, *, binary: Path | None = None) -> None:
        self.folder = Path(folder)
        self._given_binary = binary

    def __repr__(self) -> str:
        return f"LocalStore({str(self.folder)!r})"

    def load(self, *files: Path, lenient: bool = False, timeout_s: float = 600.0) -> bool:
        """Replace the whole content by that of some Turtle or N-Triples files.

        Servers that are running keep answering from what they started with.

        Args:
            files: ``.ttl`` or ``.nt`` files; together they are the new content.
            lenient: Accept IRIs and language tags that the standards do not, as dumps of Wikidata hold some.
            timeout_s: How long the load may take, in seconds.

        Returns:
            False when exactly these files are loaded already and nothing was done.

        Raises:
            StoreLoadError: A file is missing, of another kind or broken, or the time ran out.
            StoreBinaryMissingError: There is no oxigraph program.
        """
        sources = self._sources(files)
        if self.sources() == sources:
            logger.info("%s holds %s already", self.folder, ", ".join(sources))
            return False
        binary = self._binary()
        name = f"state-{uuid.uuid4().hex[:12]}"
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "load.lock", fcntl.LOCK_EX):
            try:
                self._build(self.folder / name, binary, files, lenient=lenient, timeout_s=timeout_s)
                _write_synced(self.folder / f"{name}.json", json.dumps(sources, indent=1, sort_keys=True))
                _write_synced(self.folder / "current", name)
            except BaseException:
                self._delete_state(name)
                raise
            self._delete_old_states(keep=name)
        logger.info("%s now holds %s (%.1f s)", self.folder, ", ".join(sources), time.monotonic() - started)
        return True

    def load_night(self, number: int) -> Night:
        """Replace the whole content by one night of the shipped sample.

        Args:
            number: 1 or 2.

        Returns:
            The night, with the reference time its sync should use.

        Raises:
            UnknownNightError: There is no such night.
            StoreLoadError: The sample could not be loaded.
        """
        known = nights()
        if number not in known:
            raise UnknownNightError(
                f"The sample has no night {number}; choose one of {', '.join(map(str, sorted(known)))}."
            )
        night = known[number]
        self.load(night.path)
        return night

    def sources(self) -> dict[str, str]:
        """What the store holds: the SHA-256 of each loaded file by its name; empty when nothing is loaded."""
        name = self._current()
        if name is None:
            return {}
        try:
            text = (self.folder / f"{name}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return {str(key): str(value) for key, value in json.loads(text).items()}

    @contextlib.contextmanager
    def serve(
        self, *, port: int | None = None, query_timeout_s: int = 60, start_timeout_s: float = 20.0
    ) -> Iterator[str]:
        """Answer SPARQL queries from the current content for as long as the context lasts.

        Args:
            port: The loopback port to listen on; by default a free one.
            query_timeout_s: The server gives a query up after this many whole seconds. Like Wikidata's it may
                then break off in the middle of a reply; it does not look at the clock while it sorts.
            start_timeout_s: How long the server may take to answer its first query, in seconds.

        Yields:
            The URL of the SPARQL endpoint.

        Raises:
            StoreEmptyError: Nothing is loaded.
            StoreBinaryMissingError: There is no oxigraph program.
            StorePortTakenError: Someone listens on that port.
            StoreStartError: The server did not come up.
        """
        binary = self._binary()
        with self._reading() as state:
            server = self._start(binary, state, port, query_timeout_s, start_timeout_s)
            try:
                yield server.url
            finally:
                server.stop()

    def _start(
        self, binary: Path, state: Path, port: int | None, query_timeout_s: int, start_timeout_s: float
    ) -> Server:
        attempts_left = _PORT_ATTEMPTS if port is None else 1
        while True:
            attempts_left -= 1
            server = Server(binary, state, claim_port(port), query_timeout_s)
            try:
                server.wait_until_healthy(start_timeout_s)
            except StorePortTakenError:
                # Between our look and the server's bind somebody was faster. A port of our choice may move.
                server.stop()
                if attempts_left == 0:
                    raise
            except BaseException:
                server.stop()
                raise
            else:
                return server

    def _binary(self) -> Path:
        beside = Path(sys.executable).parent / "oxigraph"
        for candidate in [self._given_binary] if self._given_binary else [beside, shutil.which("oxigraph")]:
            if candidate is not None and os.access(candidate, os.X_OK) and Path(candidate).is_file():
                return Path(candidate)
        looked = self._given_binary or f"{beside} and the path"
        raise StoreBinaryMissingError(
            f"The oxigraph program is not there (looked at {looked}); install it with `pip install oxigraph`."
        )

    def _current(self) -> str | None:
        try:
            name = (self.folder / "current").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return name if (self.folder / name).is_dir() else None

    def _sources(self, files: tuple[Path, ...]) -> dict[str, str]:
        if not files:
            raise StoreLoadError("There is no file to load; name at least one .ttl or .nt file.")
        sources: dict[str, str] = {}
        for file in files:
            if file.suffix not in _FORMATS:
                samples = ", ".join(f"night{number}" for number in sorted(nights()))
                raise StoreLoadError(
                    f"{str(file)!r} is neither Turtle (.ttl) nor N-Triples (.nt), nor a night of the sample "
                    f"({samples}): name one of these, or convert your file first."
                )
            try:
                name = file.name if file.name not in sources else str(file)
                with file.open("rb") as opened:
                    sources[name] = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise StoreLoadError(f"{file} cannot be read ({error.strerror}); check the path.") from error
        return sources

    def _build(
        self, state: Path, binary: Path, files: tuple[Path, ...], *, lenient: bool, timeout_s: float
    ) -> None:
        load = [str(binary), "load", "--location", str(state), *(["--lenient"] if lenient else [])]
        for command in (
            [*load, *(part for file in files for part in ("--file", str(file)))],
            [str(binary), "optimize", "--location", str(state)],  # without it read-only serving is slower
        ):
            try:
                done = subprocess.run(  # noqa: S603 - our own program and arguments, no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=timeout_s,
                    env=ENVIRONMENT,
                )
            except subprocess.TimeoutExpired as error:
                raise StoreLoadError(
                    f"Loading took more than {timeout_s:g} s and was stopped: give it more time "
                    "(`factsync kb load --timeout-minutes`), or load less."
                ) from error
            if done.returncode != 0:
                raise StoreLoadError(
                    f"{', '.join(file.name for file in files)} could not be loaded "
                    f"({reason(done.stderr)}); the store holds what it held before."
                    + ("" if lenient else " A dump of Wikidata wants `factsync kb load --lenient`.")
                )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Path]:
        """Hold the current state against deletion."""
        while True:
            name = self._current()
            if name is None:
                raise StoreEmptyError(
                    f"{self.folder} holds nothing to serve; load a file or a night first, "
                    "such as `factsync kb load night1`."
                )
            with _locked(self.folder / f"{name}.lock", fcntl.LOCK_SH):
                if self._current() == name:  # else it was replaced while we waited
                    yield self.folder / name
                    return

    def _delete_old_states(self, keep: str) -> None:
        for state in self.folder.glob("state-*"):
            if state.is_dir() and state.name != keep:
                try:
                    with _locked(state.with_name(f"{state.name}.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                        self._delete_state(state.name)
                except BlockingIOError:
                    logger.info("a server still reads %s; it is left for the next load", state)

    def _delete_state(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        for suffix in (".json", ".lock"):
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, operation)
        yield
    finally:
        os.close(lock)


def _write_synced(path: Path, text: str) -> None:
    """Write a file so that after a crash it holds the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Checkpoint files, named by the digest of what they hold.

A checkpoint is a folder `<root>/<digest>/` with its files and `manifest.json`. The digest is that of the
manifest, which lists every file's digest and size; the manifest carries no time and no path, so equal
content has an equal name. Order of writing: temporary folder, sync each file, sync the folder, rename, sync
the root. Whatever a crash leaves is therefore either complete or has a temporary name.

The folder belongs to one ledger and carries its id: any other would take all that lies here for leftovers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.crash import OnPoint, silent
from storage.database import raise_os_error
from storage.errors import CorruptCheckpointError, MissingCheckpointError, UnsafeFileError
from storage.types import dump

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
OWNER = "ledger-id"
FORMAT = 1
_TEMPORARY = ".tmp-"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|json)$")
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """A checkpoint whose every byte was compared with its digest.

    Attributes:
        digest: Its name.
        folder: Where it lies.
        manifest: What it says of itself.
        files: Path of each file, by name.
    """

    digest: str
    folder: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, Path]

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(said["bytes"] for said in self.manifest["files"].values())


class CheckpointFiles:
    """The folder of all checkpoints.

    Args:
        root: The folder; made if missing.
        on_point: Called at each named point (tests end the process there).
    """

    def __init__(self, root: Path | str, *, on_point: OnPoint = silent) -> None:
        self.root = Path(root)
        self._point = on_point
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise_os_error(error, self.root)

    @property
    def owner(self) -> str | None:
        """Id of the ledger whose folder this is, None if it was given to none."""
        try:
            return (self.root / OWNER).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None

    def give_to(self, ledger: str) -> None:
        """Write down whose folder this is.

        Args:
            ledger: Id of the ledger.

        Raises:
            DiskFullError: If there is no room.
            LedgerReadOnlyError: If the folder cannot be written.
        """
        with self._temporary() as temporary:
            _write(temporary / OWNER, ledger.encode(), self._point)
            (temporary / OWNER).rename(self.root / OWNER)
            sync_path(self.root)

    def path(self, digest: str) -> Path:
        """Give the folder of a checkpoint, whether it exists or not."""
        return self.root / digest

    def put(self, files: Mapping[str, bytes | Path], manifest: Mapping[str, Any]) -> str:
        """Store a checkpoint's files; storing the same content again is no work and no harm.

        Args:
            files: Content, or a file to copy, by name.
            manifest: What the checkpoint says of itself: parent, base digest, settings. Any JSON; the key
                `files` is written here.

        Returns:
            The checkpoint's digest.

        Raises:
            UnsafeFileError: If a name is not plain, or not safetensors or JSON.
            DiskFullError: If there is no room; nothing half-written remains.
            LedgerReadOnlyError: If the folder cannot be written.
        """
        for name in files:
            if not _NAME.match(name) or name == MANIFEST:
                raise UnsafeFileError(name)
        self._point("files.before")
        with self._temporary() as temporary:
            return self._put(temporary, files, manifest)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Make a folder beside the checkpoints that is gone after the block.

        Raises:
            DiskFullError: If there is no room; nothing half-written remains.
            LedgerReadOnlyError: If the folder cannot be written.
        """
        temporary = self.root / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            yield temporary
        except OSError as error:
            raise_os_error(error, temporary)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _put(self, temporary: Path, files: Mapping[str, bytes | Path], manifest: Mapping[str, Any]) -> str:
        listed: dict[str, dict[str, str | int]] = {}
        for name in sorted(files):
            sha256, size = _write(temporary / name, files[name], self._point)
            listed[name] = {"sha256": sha256, "bytes": size}
        body = dump({**manifest, "format": FORMAT, "files": listed}).encode()
        digest = hashlib.sha256(body).hexdigest()
        _write(temporary / MANIFEST, body, self._point)
        self._point("files.written")
        sync_path(temporary)
        self._point("files.synced")
        final = self.path(digest)
        if final.exists():
            if self.intact(digest):
                return digest
            # The name is taken by a damaged copy of this very content: make room for the good one.
            final.rename(self.root / f"{_TEMPORARY}damaged-{secrets.token_hex(4)}")
        temporary.rename(final)
        self._point("files.renamed")
        sync_path(self.root)
        self._point("files.folder_synced")
        return digest

    def intact(self, digest: str) -> bool:
        """Say whether a checkpoint is there and every byte of it is right."""
        try:
            self.open(digest)
        except (CorruptCheckpointError, MissingCheckpointError):
            return False
        return True

    def open(self, digest: str) -> CheckpointContent:
        """Compare every byte of a checkpoint with its digest, then hand out its paths.

        Args:
            digest: The checkpoint.

        Returns:
            Its verified content.

        Raises:
            MissingCheckpointError: If it is not there.
            CorruptCheckpointError: If it is not what its digest says.
        """
        folder = self.path(digest)
        try:
            body = (folder / MANIFEST).read_bytes()
        except FileNotFoundError as error:
            if folder.is_dir():
                raise CorruptCheckpointError(digest, MANIFEST, "missing") from error
            raise MissingCheckpointError(digest, str(folder)) from error
        if hashlib.sha256(body).hexdigest() != digest:
            raise CorruptCheckpointError(digest, MANIFEST, "its digest differs")
        manifest = json.loads(body)
        paths: dict[str, Path] = {}
        for name, said in manifest["files"].items():
            path = folder / name
            if not _NAME.match(name):
                raise CorruptCheckpointError(digest, name, "not an allowed name")
            if not path.is_file():
                raise CorruptCheckpointError(digest, name, "missing")
            if path.stat().st_size != said["bytes"]:
                raise CorruptCheckpointError(
                    digest, name, f"{path.stat().st_size} bytes, not {said['bytes']}"
                )
            if _sha256(path) != said["sha256"]:
                raise CorruptCheckpointError(digest, name, "its digest differs")
            paths[name] = path
        return CheckpointContent(digest, folder, manifest, paths)

    def digests(self) -> list[str]:
        """List the checkpoints that lie here, in order of their names."""
        return sorted(entry.name for entry in self.root.iterdir() if _DIGEST.match(entry.name))

    def orphans(self, known: Collection[str]) -> list[str]:
        """List folders that no ledger row speaks of: temporary ones, and checkpoints not in `known`."""
        found = [
            entry.name
            for entry in self.root.iterdir()
            if entry.name.startswith(_TEMPORARY) or (_DIGEST.match(entry.name) and entry.name not in known)
        ]
        return sorted(found)

    def delete(self, name: str) -> None:
        """Remove a checkpoint or a temporary folder; one that is gone already is no error.

        Raises:
            UnsafeFileError: If the name is neither.
            LedgerReadOnlyError: If it cannot be removed.
        """
        if not (_DIGEST.match(name) or name.startswith(_TEMPORARY)) or "/" in name:
            raise UnsafeFileError(name)
        folder = self.path(name)
        # First away from its name, so that a crash in the middle leaves no half checkpoint under a digest.
        gone = (
            folder if name.startswith(_TEMPORARY) else self.root / f"{_TEMPORARY}gone-{secrets.token_hex(4)}"
        )
        try:
            if gone is not folder:
                folder.rename(gone)
            shutil.rmtree(gone)
            sync_path(self.root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise_os_error(error, folder)


def _write(path: Path, content: bytes | Path, point: OnPoint) -> tuple[str, int]:
    """Write and sync one file.

    Returns:
        Its digest and size in bytes.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("xb") as out:
        for chunk in _chunks(content):
            half = len(chunk) // 2
            out.write(chunk[:half])
            if size == 0:
                point("files.half_written")
            out.write(chunk[half:])
            digest.update(chunk)
            size += len(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest(), size


def _chunks(content: bytes | Path) -> Any:  # noqa: ANN401  an iterator of bytes or views of them
    if isinstance(content, Path):
        with content.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
    else:
        view = memoryview(content)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def sync_path(path: Path) -> None:
    """Have the disk take what is written of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

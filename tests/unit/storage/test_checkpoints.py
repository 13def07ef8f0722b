"""Checkpoint files: named by content, whole or not there, checked before use."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import crash
from storage.checkpoints import CheckpointFiles
from storage.errors import CorruptCheckpointError, MissingCheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = {"delta.safetensors": b"d" * 3_000_000, "states.safetensors": b"", "notes.json": b"{}"}


def test_what_was_put_comes_back(files: CheckpointFiles) -> None:
    digest = files.put(CONTENT, {"parent": None, "base": "b"})
    content = files.open(digest)
    assert {name: path.read_bytes() for name, path in content.files.items()} == CONTENT
    assert content.manifest["base"] == "b"
    assert files.digests() == [digest]
    assert content.size_bytes == 3_000_002
    manifest = (content.folder / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest


def test_the_name_is_the_content_and_nothing_else(files: CheckpointFiles, tmp_path: Path) -> None:
    source = tmp_path / "delta"
    source.write_bytes(CONTENT["delta.safetensors"])
    one = files.put(CONTENT, {"a": 1, "b": 2})
    assert files.put({**CONTENT, "delta.safetensors": source}, {"b": 2, "a": 1}) == one
    others = {
        files.put(CONTENT, {"a": 2, "b": 2}),
        files.put({**CONTENT, "notes.json": b"[]"}, {"a": 1, "b": 2}),
    }
    assert len({one, *others}) == 3
    assert files.orphans(known=[]) == files.digests()


def test_a_damaged_copy_makes_room_for_the_good_one(files: CheckpointFiles) -> None:
    digest = files.put(CONTENT, {})
    (files.path(digest) / "delta.safetensors").write_bytes(b"short")
    with pytest.raises(CorruptCheckpointError, match="5 bytes"):
        files.open(digest)
    assert files.put(CONTENT, {}) == digest
    files.open(digest)
    (damaged,) = files.orphans([digest])
    files.delete(damaged)
    assert files.orphans([digest]) == []


@pytest.mark.parametrize(
    "name",
    ["delta.pt", "delta.bin", "delta.pkl", "../x.json", "a/b.json", ".hidden.json", "manifest.json", ""],
)
def test_only_plain_safetensors_and_json_are_stored(files: CheckpointFiles, name: str) -> None:
    with pytest.raises(UnsafeFileError):
        files.put({name: b""}, {})
    assert list(files.root.iterdir()) == []


def test_a_manifest_that_names_other_files_is_not_believed(files: CheckpointFiles) -> None:
    outside = files.root.parent / "outside.json"
    outside.write_bytes(b"{}")
    said = {"../outside.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    body = json.dumps({"files": said}).encode()
    digest = hashlib.sha256(body).hexdigest()
    files.path(digest).mkdir()
    (files.path(digest) / "manifest.json").write_bytes(body)
    with pytest.raises(CorruptCheckpointError, match="not an allowed name"):
        files.open(digest)


def test_what_is_missing_is_said_to_be_missing(files: CheckpointFiles) -> None:
    with pytest.raises(MissingCheckpointError):
        files.open("0" * 64)
    digest = files.put(CONTENT, {})
    (files.path(digest) / "manifest.json").unlink()
    with pytest.raises(CorruptCheckpointError, match="missing"):
        files.open(digest)
    files.delete(digest)
    files.delete(digest)
    assert list(files.root.iterdir()) == []


def test_only_checkpoints_are_deleted(files: CheckpointFiles) -> None:
    for name in ("", "..", "../x", "ledger.db", ".tmp-/../../x"):
        with pytest.raises(UnsafeFileError):
            files.delete(name)


@pytest.mark.parametrize("point", crash.FILES)
def test_an_exception_on_the_way_leaves_nothing_half(tmp_path: Path, point: str) -> None:
    def fail(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    files = CheckpointFiles(tmp_path / "c", on_point=fail)
    with pytest.raises(KeyboardInterrupt):
        files.put(CONTENT, {})
    for digest in files.digests():
        files.open(digest)
    assert files.orphans(files.digests()) == []
    again = CheckpointFiles(tmp_path / "c")
    again.open(again.put(CONTENT, {}))


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=200), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, bit: int
) -> None:
    files = CheckpointFiles(tmp_path_factory.mktemp("bits"))
    digest = files.put({"delta.safetensors": content}, {"parent": None})
    name = "manifest.json" if place % 2 else "delta.safetensors"
    path = files.path(digest) / name
    damaged = bytearray(path.read_bytes())
    damaged[place % len(damaged)] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(CorruptCheckpointError):
        files.open(digest)

"""The local store with the real oxigraph program: loading, serving, and never leaving anything behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from SPARQLWrapper import JSON, POST, SPARQLWrapper

from kb import serving
from kb import store as store_module
from kb.errors import StoreError
from kb.store import (
    LocalStore,
    StoreBinaryMissingError,
    StoreEmptyError,
    StoreLoadError,
    StorePortTakenError,
    StoreStartError,
)

ROOT = Path(__file__).parents[3]
COUNT = "SELECT (COUNT(*) AS ?n) { ?s ?p ?o }"
UPDATE = "INSERT DATA { <http://a.test/s> <http://a.test/p> 1 }"


def ask(url: str, query: str) -> dict:
    wrapper = SPARQLWrapper(url)
    wrapper.setMethod(POST)
    wrapper.setReturnFormat(JSON)
    wrapper.setQuery(query)
    return wrapper.query().convert()


def count(url: str) -> int:
    return int(ask(url, COUNT)["results"]["bindings"][0]["n"]["value"])


def is_open(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) == 0


def wait_until_closed(url: str, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_open(url) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_open(url)


def children() -> set[str]:
    """Process ids of our children, the unreaped among them."""
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def triples(tmp_path: Path) -> Path:
    path = tmp_path / "three.nt"
    path.write_text("".join(f"<http://a.test/{n}> <http://a.test/p> {n} .\n" for n in "123"))
    path.write_text(path.read_text().replace(" 1 ", ' "1" ').replace(" 2 ", ' "2" ').replace(" 3 ", ' "3" '))
    return path


@pytest.fixture
def turtle(tmp_path: Path) -> Path:
    path = tmp_path / "one.ttl"
    path.write_text("@prefix a: <http://a.test/> .\na:s a:p 'o' .\n")
    return path


def program(tmp_path: Path, script: str) -> Path:
    """A program that behaves badly in the place of oxigraph, which does not."""
    path = tmp_path / "oxigraph"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_serves_what_was_loaded(store: LocalStore, triples: Path) -> None:
    assert store.load(triples)
    with store.serve() as url:
        assert url.startswith("http://127.0.0.1:")
        assert count(url) == 3
    assert not is_open(url)


def test_several_files_are_one_content(store: LocalStore, triples: Path, turtle: Path) -> None:
    store.load(triples, turtle)
    assert sorted(store.sources()) == ["one.ttl", "three.nt"]
    with store.serve() as url:
        assert count(url) == 4


def test_files_of_one_name_are_both_remembered(store: LocalStore, tmp_path: Path, triples: Path) -> None:
    twin = tmp_path / "twin" / triples.name
    twin.parent.mkdir()
    twin.write_text("<http://a.test/other> <http://a.test/p> <http://a.test/o> .\n")
    store.load(triples, twin)
    assert len(store.sources()) == 2


def test_loading_replaces_and_a_running_server_keeps_its_own(
    store: LocalStore, triples: Path, turtle: Path
) -> None:
    store.load(triples)
    with store.serve() as old:
        store.load(turtle)
        assert count(old) == 3
        with store.serve() as new:
            assert count(new) == 1
        assert len(list(store.folder.glob("state-*.json"))) == 2, "what is read is not deleted"
    store.load(triples)
    assert len(list(store.folder.glob("state-*.json"))) == 1, "what nobody reads is"


def test_loading_the_same_again_does_nothing(store: LocalStore, triples: Path) -> None:
    assert store.load(triples)
    assert not store.load(triples)
    triples.write_text(triples.read_text() + "<http://a.test/4> <http://a.test/p> <http://a.test/o> .\n")
    assert store.load(triples)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.ttl", "<http://a.test/s> <http://a.test/p> <http://a b> .", "line 1"),
        ("bad.nt", "this is no triple", "line 1"),
        ("bad.csv", "a,b", "neither Turtle"),
        ("absent.ttl", None, "No such file"),
    ],
)
def test_a_load_that_fails_changes_nothing(  # noqa: PLR0917 - the cases
    store: LocalStore, triples: Path, tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    store.load(triples)
    before = store.sources()
    bad = tmp_path / name
    if content is not None:
        bad.write_text(content)
    with pytest.raises(StoreLoadError, match=reason):
        store.load(bad)
    assert store.sources() == before
    assert len([path for path in store.folder.glob("state-*") if path.is_dir()]) == 1
    with store.serve() as url:
        assert count(url) == 3


def test_lenient_takes_what_dumps_hold(store: LocalStore, tmp_path: Path) -> None:
    path = tmp_path / "dump.nt"
    path.write_text("<http://a.test/s> <http://a.test/p> <http://a.test/{x}> .\n")
    with pytest.raises(StoreLoadError):
        store.load(path)
    store.load(path, lenient=True)
    with store.serve() as url:
        assert count(url) == 1


def test_nothing_to_load_is_said(store: LocalStore) -> None:
    with pytest.raises(StoreLoadError, match="at least one"):
        store.load()


def test_nothing_to_serve_is_said(store: LocalStore) -> None:
    with pytest.raises(StoreEmptyError, match="load a file or a night"), store.serve():
        pass
    assert store.sources() == {}


def test_a_lost_note_of_the_sources_only_costs_a_load(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    for note in store.folder.glob("state-*.json"):
        note.unlink()
    assert store.sources() == {}
    assert store.load(triples)


def test_leftovers_of_a_killed_load_go_with_the_next(store: LocalStore, triples: Path) -> None:
    (store.folder / "state-dead").mkdir(parents=True)
    store.load(triples)
    assert not (store.folder / "state-dead").exists()


def test_a_load_that_takes_too_long_is_stopped(tmp_path: Path, triples: Path) -> None:
    slow = LocalStore(tmp_path / "store", binary=program(tmp_path, "exec sleep 30"))
    with pytest.raises(StoreLoadError, match=r"more than 0\.2 s"):
        slow.load(triples, timeout_s=0.2)


def test_a_missing_program_is_named(tmp_path: Path, triples: Path) -> None:
    broken = LocalStore(tmp_path / "store", binary=tmp_path / "nowhere")
    with pytest.raises(StoreBinaryMissingError, match="pip install oxigraph") as caught:
        broken.load(triples)
    assert isinstance(caught.value, StoreError)
    assert "nowhere" in str(caught.value)


def test_a_program_on_neither_path_is_named(
    store: LocalStore, triples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StoreBinaryMissingError, match="/nowhere/oxigraph and the path"):
        store.load(triples)


def test_it_is_read_only(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    with store.serve() as url:
        wrapper = SPARQLWrapper(url.replace("/query", "/update"))
        wrapper.setMethod(POST)
        wrapper.setQuery(UPDATE)
        with pytest.raises(Exception, match=r"40\d|not allowed|not found|Forbidden|support|Not|read"):
            wrapper.query()
        assert count(url) == 3


def test_the_server_gives_a_query_up_at_its_deadline(store: LocalStore, tmp_path: Path) -> None:
    many = tmp_path / "many.nt"
    many.write_text(
        "".join(f"<http://a.test/{n}> <http://a.test/p> <http://a.test/o> .\n" for n in range(300))
    )
    store.load(many)
    endless = (
        "SELECT ?a { ?a ?b ?c . ?d ?e ?f . ?g ?h ?i FILTER(CONCAT(STR(?a), STR(?d), STR(?g)) = STR(?b)) }"
    )
    with store.serve(query_timeout_s=1) as url:
        started = time.monotonic()
        wrapper = SPARQLWrapper(url)
        wrapper.setTimeout(20)
        wrapper.setReturnFormat(JSON)
        wrapper.setQuery(endless)
        with pytest.raises(ValueError, match=r"delimiter|value"):  # JSON that breaks off
            wrapper.query().convert()
        assert time.monotonic() - started < 15
        assert count(url) == 300, "and goes on with the next"


def test_a_taken_port_is_said(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StorePortTakenError, match=str(port)), store.serve(port=port):
            pass


def test_a_port_taken_at_the_last_moment_is_said(
    store: LocalStore, triples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(triples)
    with store.serve() as first:
        port = urlsplit(first).port
        monkeypatch.setattr(store_module, "claim_port", lambda _: port)
        with pytest.raises(StorePortTakenError, match="choose another"), store.serve(port=port):
            pass
        with pytest.raises(StorePortTakenError), store.serve():
            pass
        assert count(first) == 3


def test_a_free_port_is_looked_for_again(
    store: LocalStore, triples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(triples)
    claim = store_module.claim_port
    with store.serve() as first:
        answers = iter([urlsplit(first).port])
        monkeypatch.setattr(store_module, "claim_port", lambda port: next(answers, None) or claim(port))
        with store.serve() as second:
            assert second != first
            assert count(second) == 3


def test_a_given_port_is_used_twice_in_a_row(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    with store.serve() as url:
        count(url)
    with store.serve(port=urlsplit(url).port) as again:
        assert again == url


def test_a_server_that_ends_at_once_says_why(store: LocalStore, triples: Path, tmp_path: Path) -> None:
    store.load(triples)
    broken = LocalStore(store.folder, binary=program(tmp_path, "echo 'Error: no luck.' >&2; exit 3"))
    with pytest.raises(StoreStartError, match=r"\(no luck\)"), broken.serve():
        pass
    silent = LocalStore(store.folder, binary=program(tmp_path, "exit 3"))
    with pytest.raises(StoreStartError, match="no reason"), silent.serve():
        pass


def test_a_server_that_never_answers_is_ended_by_force(
    store: LocalStore, triples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(triples)
    monkeypatch.setattr(serving, "_STOP_S", 0.3)
    note = tmp_path / "pid"
    stubborn = program(tmp_path, f"echo $$ > {note}\ntrap '' TERM\nwhile :; do sleep 0.1; done")
    with (
        pytest.raises(StoreStartError, match=r"within 0\.5 s"),
        LocalStore(store.folder, binary=stubborn).serve(start_timeout_s=0.5),
    ):
        pass
    assert not Path(f"/proc/{note.read_text().strip()}").exists(), "neither running nor a zombie"


def test_no_child_is_left_after_an_exception(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    before = children()
    with pytest.raises(RuntimeError, match="midway"), store.serve() as url:
        raise RuntimeError("midway")
    assert not is_open(url)
    assert children() <= before, "other tests may have servers of their own; ours is gone"


def test_it_outlives_the_thread_that_started_it(store: LocalStore, triples: Path) -> None:
    store.load(triples)
    context = store.serve()
    urls: list[str] = []
    thread = threading.Thread(target=lambda: urls.append(context.__enter__()))
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert count(urls[0]) == 3
    context.__exit__(None, None, None)
    assert not is_open(urls[0])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_parent(store: LocalStore, triples: Path, end: signal.Signals) -> None:
    store.load(triples)
    script = (
        "import signal, sys, time; from pathlib import Path; from kb.store import LocalStore\n"
        # A suite in the background passes on that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with LocalStore(Path(sys.argv[1])).serve() as url:\n"
        "    print(url, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as parent:
        url = parent.stdout.readline().strip()
        assert count(url) == 3
        parent.send_signal(end)
        parent.wait(10)
    assert wait_until_closed(url)


def test_two_processes_can_load_and_serve_at_once(store: LocalStore, triples: Path, turtle: Path) -> None:
    """The states differ, the last pointer wins, and nobody reads a mixture."""
    failures: list[BaseException] = []

    def load_and_count() -> None:
        try:
            for source in (triples, turtle) * 2:
                LocalStore(store.folder).load(source)
                with LocalStore(store.folder).serve() as url:
                    assert count(url) in {1, 3}
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=load_and_count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

"""What a local server and worker are started with, and when starting again stops."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import local_prefect, serving
from flows.errors import ServerStartError
from flows.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings.read(tmp_path / "home")


def test_nothing_leaves_the_machine(settings):
    values = local_prefect.environment(settings)
    assert values["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert values["DO_NOT_TRACK"] == "1"
    assert values["PREFECT_SERVER_API_HOST"] == "127.0.0.1"
    assert values["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert values["PREFECT_HOME"].startswith(str(settings.home))


def test_the_second_interface_is_a_choice(settings):
    chosen = settings.model_copy(update={"ui": "v2"})
    assert local_prefect.environment(chosen)["PREFECT_SERVER_UI_V2_ENABLED"] == "true"


def test_pages_are_told_once_to_stay_here(settings):
    pages = [settings.prefect_dir / "ui" / version / "index.html" for version in ("v1", "v2")]
    for page in pages:
        page.parent.mkdir(parents=True)
        page.write_text("<html>\n  <head>\n    <title>Prefect</title>")
    for _ in range(2):
        local_prefect.keep_here(settings)
    for page in pages:
        assert page.read_text().count("Content-Security-Policy") == 1
        assert page.read_text().index("Content-Security-Policy") < page.read_text().index("<title>")


def test_a_worker_knows_the_home_and_our_packages(settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    values = serving.worker_environment(settings, "http://127.0.0.1:4200/api")
    assert values["FACTSYNC_HOME"] == str(settings.home)
    ours, mine = values["PYTHONPATH"].split(":")
    assert (Path(ours) / "flows").is_dir()
    assert mine == "/mine"
    assert serving.SILENT_FOR_S >= 3 * serving.HEARTBEAT_S


def test_a_child_that_keeps_ending_ends_the_command(settings):
    said = []
    watch = serving.Watch(settings, said.append)
    for _ in range(serving.MOST_RESTARTS):
        watch._count("worker", 1)
    with pytest.raises(ServerStartError, match=r"worker\.log"):
        watch._count("worker", 1)
    assert len(said) == serving.MOST_RESTARTS


def test_nobody_answers_on_a_free_port(settings):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert not local_prefect.healthy(f"http://127.0.0.1:{one.getsockname()[1]}/api", timeout_s=0.5)


def test_a_server_that_is_named_and_does_not_answer_is_told_before_a_run(settings, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServerStartError, match=r"PREFECT_API_URL is .*, and nothing answers"):
        local_prefect.for_runs(settings)


def test_what_a_worker_leaves_behind_is_ended():
    script = "import subprocess, time; subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    worker.stdout.readline()
    (run,) = local_prefect.children_of(worker.pid)
    worker.kill()
    worker.wait()
    local_prefect.stop_processes([run, worker.pid], grace_s=5)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{run}/stat").exists() and " Z " not in Path(f"/proc/{run}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)

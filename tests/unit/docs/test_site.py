"""The documentation says what is so: links, exit codes, names of states, files that parse."""

import ast
import configparser
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from flows import errors
from flows.cli.main import EXIT_CODES, FAMILIES, app
from flows.states import NAMES

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
POOLS = DOCS / "pools"


def test_the_site_builds_without_a_broken_link(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 8
    assert not [page for page in pages if "fonts.googleapis.com" in page.read_text()]


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert sorted(re.findall(r"[\w-]+\.md", text)) == sorted(page.name for page in DOCS.glob("*.md"))


def test_exit_codes_are_as_documented():
    table = dict(re.findall(r"^\| (\d) \| (.+) \|$", (DOCS / "operate.md").read_text(), re.MULTILINE))
    assert dict(re.findall(r"(\d) ([a-z][^·\n]*[a-z])", EXIT_CODES.replace("\n", " "))) == table
    codes = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.FlowError)
    }
    assert {str(code) for code in codes} <= table.keys()


def test_every_name_of_a_failure_is_explained():
    text = (DOCS / "operate.md").read_text().split("## Names of states")[1].split("##")[0]
    explained = {
        name.strip()
        for row in re.findall(r"^\| ([A-Z][^|]+) \|", text, re.MULTILINE)
        for name in row.split(",")
    }
    assert {name for _, name in NAMES} - {"Server did not start"} <= explained | {
        "Source error",
        "Editor error",
    }


def commands(text):
    """Commands of shell blocks, and those named inside a sentence."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shown = "\n".join(block for language, block in blocks if language in {"bash", ""})
    named = "\n".join(re.findall(r"`(factsync [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    for line in f"{shown}\n{named}".splitlines():
        for found in re.finditer(r"(?:^|[ /])factsync ((?:--home \S+ )?[a-z].*)", line.split("#")[0]):
            yield found.group(1).split()


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorded_run_is_shown_whole_and_asks_nobody():
    recorder = loaded(ROOT / "benchmarks" / "record_terminal.py")
    images = DOCS / "images"
    start = (DOCS / "index.md").read_text()
    header, *events = map(json.loads, (images / "terminal.cast").read_text().splitlines())
    played = "".join(text for _, _, text in events)
    assert (header["version"], header["width"]) == (2, recorder.COLUMNS)
    for name, lines in recorder.SCENES:
        picture = (images / f"{name}.svg").read_text()
        assert f"](images/{name}.svg)" in start
        assert "url(http" not in picture
        for line in lines:
            assert line.split("{")[0] in played
            exists("the recorded run", line.split()[1:])


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_command_exists_with_its_options(page):
    for words in commands(page.read_text()):
        exists(page.name, words)


def exists(where, words):
    """Assert that a command is one of ours and takes the options given."""
    for family in FAMILIES:
        importlib.import_module(f"flows.cli.{family}")
    root = typer.main.get_command(app)
    rest = words[2:] if words[0] == "--home" else words
    command = root
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert command is not root, (where, words)
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= options, (where, command.name, words)


@pytest.mark.parametrize("name", ["docker.json", "kubernetes-gpu.json"])
def test_a_job_template_declares_what_it_uses(name):
    template = json.loads((POOLS / name).read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= template["variables"]["properties"].keys()
    assert template["variables"]["properties"]["env"]["default"]["FACTSYNC_HOME"]


def test_kubernetes_asks_for_a_graphics_processor():
    manifest = json.loads((POOLS / "kubernetes-gpu.json").read_text())["job_configuration"]["job_manifest"]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"


def test_a_volume_on_kubernetes_belongs_to_the_user_of_the_image():
    manifest = json.loads((POOLS / "kubernetes-gpu.json").read_text())["job_configuration"]["job_manifest"]
    group = manifest["spec"]["template"]["spec"]["securityContext"]["fsGroup"]
    assert f"useradd --uid {group} " in (POOLS / "Dockerfile").read_text()


def test_the_image_runs_the_commands_of_workers():
    """Prefect's workers give a whole command: an entry point would take it for its arguments."""
    assert not re.search(r"^ENTRYPOINT", (POOLS / "Dockerfile").read_text(), re.MULTILINE)
    variables = json.loads((POOLS / "docker.json").read_text())["variables"]["properties"]
    # No registry has this image, and Prefect pulls what is called latest.
    assert variables["image_pull_policy"]["default"] == "IfNotPresent"


def test_what_compose_starts_comes_back_and_waits_for_what_it_needs():
    services = yaml.safe_load((POOLS / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        for needed, when in service.get("depends_on", {}).items():
            assert when == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]


def test_compose_listens_on_loopback_and_keeps_no_password():
    text = (POOLS / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", []))
    assert not re.search(r"PASSWORD: (?!\$\{)", text)
    for volume in services["database"]["volumes"]:
        source = volume.split(":")[0]
        assert not source.startswith("./") or (POOLS / source).exists()


def test_the_image_copies_what_exists():
    copied = re.findall(r"^COPY (.+) \S+$", (POOLS / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_the_unit_runs_up():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(POOLS / "factsync.service")
    assert unit["Service"]["ExecStart"].endswith("factsync up")


def test_the_example_automation_is_one():
    ast.parse((POOLS / "notify.py").read_text())
    made = loaded(POOLS / "notify.py").automation("8f3c7d9e-0d5e-4b5c-9d0e-2f4f3f8a1b2c")
    assert made.trigger.expect == {"factsync.rejected"}

"""What is published: formats, casts and cards, from real nights on a tiny model."""

import json
import sys

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from editor import recall
from editor.model import LanguageModel
from flows import models
from flows.cli.main import main
from flows.formats import Dtype, Format
from flows.publish import export
from flows.workspace import opened_model

pytestmark = pytest.mark.usefixtures("prefect_server")

PROMPTS = ["The head of government of Japan is", "The head of state of France is", "In Peru, the person who"]


@pytest.fixture
def opened(two_nights):
    """Two nights, and the model they made."""
    settings = two_nights[0]
    with opened_model(settings) as (ws, model):
        lm = models.load_base(settings)
        models.put_on(lm, ws.files, ws.ledger.lineage(model))
        yield ws, model, lm


def test_every_format_says_the_same_and_tells_what_it_is(opened, tmp_path):
    ws, model, lm = opened
    answers = recall.completions(lm, PROMPTS)
    merged = export(ws, model, None, tmp_path / "merged")
    assert recall.completions(LanguageModel.load(merged.folder, device="cpu"), PROMPTS) == answers
    adapter = export(ws, model, None, tmp_path / "adapter", form=Format.PEFT)
    assert adapter.adapter.exact
    base = models.load_base(ws.settings)
    loaded = PeftModel.from_pretrained(base.model, adapter.folder).merge_and_unload()
    assert recall.completions(LanguageModel.wrap(loaded, base.tokenizer), PROMPTS) == answers
    small = export(ws, model, None, tmp_path / "small", form=Format.PEFT, rank=2)
    assert small.adapter.rank == 2
    assert f"{100 * small.adapter.error:.3g} % of the change is missing" in (
        small.folder / "README.md"
    ).read_text(encoding="utf-8")
    ready = export(ws, model, None, tmp_path / "ready", form=Format.GGUF_READY)
    first, second = ws.ledger.lineage(model)
    for folder in (merged.folder, adapter.folder, ready.folder):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "The facts come from [Wikidata]" in card
        assert "CC0" in card
        assert model.base_digest in card
        assert f"| lineage | `{first.digest[:12]}` → `{second.digest[:12]}` |" in card
        assert f"| checkpoint | `{second.digest}` |" in card
        assert f"| edited facts said word for word | {100 * second.metrics['exact']:.1f} % |" in card
        facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
        assert len(facts) == len(ws.ledger.live_facts(model))
        assert all(fact["statements"] and fact["statements"][0]["revision"] > 0 for fact in facts)


def test_a_cast_is_reported(opened, tmp_path):
    ws, model, _ = opened
    done = export(ws, model, None, tmp_path / "half", dtype=Dtype.BFLOAT16)
    assert done.rounding.changed > 0
    assert f"rounds {100 * done.rounding.share:.2f} % of the edited entries" in (
        done.folder / "README.md"
    ).read_text(encoding="utf-8")
    assert AutoModelForCausalLM.from_pretrained(done.folder).dtype == torch.bfloat16


def test_the_converter_of_llama_cpp_finds_what_it_reads(opened, tmp_path):
    """Every tensor has a place in its own table, and the settings stand under old names and new."""
    ws, model, lm = opened
    done = export(ws, model, None, tmp_path / "gguf", form=Format.GGUF_READY, dtype=Dtype.FLOAT16)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == "float16"
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    with safe_open(done.folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            assert places.get_name(name, try_suffixes=(".weight", ".bias")), name
            assert file.get_tensor(name).dtype == torch.float16
    assert (done.folder / "tokenizer.json").exists()
    loaded = LanguageModel.load(done.folder, device="cpu")
    assert loaded.model.config.rope_parameters == lm.model.config.rope_parameters


def test_the_command_makes_the_folder_and_tells_what_it_cost(opened, tmp_path, monkeypatch, capsys):
    words = ["export", "live", "--format", "peft", "--rank", "3", "--out", str(tmp_path / "a"), "--json"]
    monkeypatch.setattr(sys, "argv", ["factsync", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    said = json.loads(capsys.readouterr().out)
    assert said["rank"] == 3
    assert 0 < said["error"] < 1
    assert (tmp_path / "a" / "adapter_model.safetensors").exists()
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "is there already" in " ".join(capsys.readouterr().err.split())


def test_an_older_checkpoint_lists_the_facts_it_held(opened, tmp_path):
    ws, model, _ = opened
    first, second = ws.ledger.lineage(model)
    done = export(ws, model, first, tmp_path / "first", form=Format.PEFT)
    facts = (done.folder / "facts.jsonl").read_text().splitlines()
    assert len(facts) == first.live_facts
    assert second.digest not in (done.folder / "README.md").read_text(encoding="utf-8")


def test_the_facts_are_those_of_the_weights_though_the_head_moves_meanwhile(opened, tmp_path, monkeypatch):
    ws, model, _ = opened
    first, second = ws.ledger.lineage(model)
    held = {(row.subject, row.property): row.label for row in ws.ledger.live_facts(model)}
    load = models.load_base

    def moves(settings):
        with ws.writer() as lease:
            ws.ledger.rollback(lease, first.id, reason="test", review=False)
        return load(settings)

    monkeypatch.setattr(models, "load_base", moves)
    done = export(ws, model, None, tmp_path / "second", form=Format.PEFT)
    assert second.digest in (done.folder / "README.md").read_text(encoding="utf-8")
    facts = [json.loads(line) for line in (done.folder / "facts.jsonl").read_text().splitlines()]
    assert {(fact["subject"], fact["property"]): fact["label"] for fact in facts} == held

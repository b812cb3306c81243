"""From questions to report.json, on a small SQLite file, with a model that knows the answers and one that does not."""

import json
import shutil
import sys

import pytest

from preference.compare_models import main, pairs_of, run_facts
from sft import ranks
from sft.artefacts import mark_complete, mark_path, read_parquet, write_json, write_parquet
from sft.checkpoint import checkpoint_hash


def compare(monkeypatch, *arguments):
    """Run the entry script in this process; returns what it exits with, None where it ends by itself."""
    # torch's threads of this process are spinning ones: two of them on a busy machine wait for each other.
    monkeypatch.setattr(ranks, "threads_per_rank", lambda: 1)
    words = [
        "--precision",
        "fp32",
        "--max-new-tokens",
        "40",
        "--batch-size",
        "2",
        "--workers",
        "1",
        *map(str, arguments),
    ]
    monkeypatch.setattr(sys, "argv", ["compare_models.py", *words])
    try:
        main()
    except SystemExit as exit:
        return exit.code


@pytest.fixture(scope="module")
def compared(pets, pet_models, tmp_path_factory):
    """(output folder, what was printed) of base against SFT on the four questions."""
    output = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        models = [f"{name}={path}" for name, path in pet_models.items()]
        assert compare(monkeypatch, "--models", *models, "--data", pets, "--output", output) is None
    return output


def test_report_json_has_what_readers_rely_on(compared, pets):
    report = json.loads((compared / "report.json").read_text(encoding="utf-8"))
    assert {"split", "n", "models", "paired"} <= report.keys()
    assert report["split"] == str(pets) and report["n"] == 4 and list(report["models"]) == ["base", "sft"]
    for model in report["models"].values():
        assert {"execution_accuracy", "ci95", "valid_sql"} <= model.keys()
        assert 0 <= model["ci95"][0] <= model["execution_accuracy"] <= model["ci95"][1] <= 1
    assert report["models"]["base"]["execution_accuracy"] == report["models"]["base"]["valid_sql"] == 0
    assert report["models"]["sft"]["execution_accuracy"] == report["models"]["sft"]["valid_sql"] == 1
    # Wilson's interval of 4 right of 4: 4 / (4 + 1.96 ** 2) to 1.
    assert report["models"]["sft"]["ci95"] == pytest.approx([0.5101, 1.0], abs=1e-4)
    assert list(report["paired"]) == ["base_sft"]
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "How many pets?" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_answers_are_kept_with_their_marks(compared):
    rows = read_parquet(compared / "answers" / "sft.parquet")
    assert [row["sql"] for row in rows][:2] == ["SELECT COUNT(*) FROM pet", "SELECT name FROM pet"]
    assert all(row["ended_with_eos"] for row in rows)
    assert json.loads(mark_path(compared / "answers" / "sft.parquet").read_text())["rows"] == {"answers": 4}


def test_a_second_comparison_asks_no_model_again(compared, pets, pet_models, monkeypatch, capsys):
    import sft.checkpoint

    def refuse(*arguments, **keywords):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sft.checkpoint, "load_for_inference", refuse)
    before = json.loads((compared / "report.json").read_text())
    models = [f"{name}={path}" for name, path in pet_models.items()]
    assert compare(monkeypatch, "--models", *models, "--data", pets, "--output", compared) is None
    assert json.loads((compared / "report.json").read_text()) == before
    assert f"report: {compared / 'report.html'}" in capsys.readouterr().out


def test_answers_of_other_weights_under_the_same_name_are_not_overwritten(compared, pets, pet_models, monkeypatch):
    message = compare(monkeypatch, "--models", f"sft={pet_models['base']}", "--data", pets, "--output", compared)
    assert message.startswith(f"error: {compared / 'answers' / 'sft.parquet'} was made with other settings")
    assert "checkpoint:" in message and "--overwrite" in message


def test_an_adapter_of_another_prompt_format_is_refused(pets, pet_models, tmp_path, monkeypatch):
    folder = shutil.copytree(pet_models["sft"], tmp_path / "sft")
    provenance = json.loads((folder / "provenance.json").read_text())
    write_json(folder / "provenance.json", provenance | {"prompt_hash": "0" * 16})
    message = compare(monkeypatch, "--models", f"sft={folder}", "--data", pets, "--output", tmp_path / "out")
    assert f"{folder} was made with prompt format {'0' * 16}" in message
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "base", "--data", "test"], "error: --models base: write NAME=VALUE with a name of its own"),
        (["--models", "a=x", "a=y", "--data", "test"], "error: --models a=y: write NAME=VALUE with a name of its own"),
        (["--models", "a=./none", "--data", "test"], "has no prepared data to take the test split from"),
        (["--models", "a=./none", "--data", "none.jsonl"], "error: --data: there is no file or folder none.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in compare(monkeypatch, *arguments, "--output", tmp_path / "out")


def test_a_model_that_is_not_there_is_named(pets, tmp_path, monkeypatch):
    message = compare(monkeypatch, "--models", "a=./none", "--data", pets, "--output", tmp_path)
    assert "model: there is no folder ./none" in message


def test_names_and_paths_keep_their_order():
    assert list(pairs_of(["dpo=b", "base=a=c"], "--models").items()) == [("dpo", "b"), ("base", "a=c")]


def test_facts_of_a_run_are_what_its_stages_left(tmp_path):
    import pyarrow as pa

    assert run_facts(tmp_path) == {"training": {}}
    log = [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}, {"step": 4, "train_runtime": 3.0}]
    write_json(
        tmp_path / "sft" / "training.json",
        {
            "steps": 4,
            "evaluations": {"3": {"execution_accuracy": 0.5}, "4": {"execution_accuracy": 0.75}},
            "log": log,
            "dev_after": {"n": 3},
            "duration_s": 9.0,
        },
    )
    place = tmp_path / "round-1"
    reasons = pa.schema([("example_id", pa.string()), ("reason", pa.string())])
    write_parquet(place / "dropped.parquet", [{"example_id": "a", "reason": "only_unclear"}], reasons)
    write_parquet(
        place / "pairs.parquet", [{"example_id": "b"}, {"example_id": "c"}], pa.schema([("example_id", pa.string())])
    )
    mark_complete(place / "pairs.parquet", {}, {"pairs": 2})
    write_json(tmp_path / "sft" / "adapter_config.json", {})
    write_json(tmp_path / "sft" / "provenance.json", {"base_fingerprint": "base"})
    (tmp_path / "sft" / "adapter_model.safetensors").write_text("weights")
    mark_complete(tmp_path / "sft", {}, {})
    (tmp_path / "config.yaml").write_text("dpo: {rounds: 1}\n")
    mark_complete(place / "candidates.parquet", {"checkpoint": "another"}, {})
    assert "pairs" not in run_facts(tmp_path), "they were sampled from another adapter"
    mark_complete(place / "candidates.parquet", {"checkpoint": checkpoint_hash(tmp_path / "sft")}, {})
    facts = run_facts(tmp_path)
    assert facts["training"] == {
        "sft": [
            {"step": 2, "loss": 0.5},
            {"step": 4, "loss": 0.25},
            {"step": 3, "dev_execution_accuracy": 0.5},  # measured where no loss is logged
            {"step": 4, "dev_execution_accuracy": 0.75},
        ]
    }
    assert facts["sft"] == {"steps": 4, "duration_s": 9.0}
    assert facts["pairs"] == {"kept": 2, "dropped": {"only_unclear": 1}}
    rows = [{"step": 0, "execution_accuracy": 0.5}]
    write_json(place / "dpo" / "training.json", {"steps": 2, "guards": rows, "stopped": "why", "kept_step": 0, "log": []})
    write_json(place / "dpo" / "adapter_config.json", {})
    write_json(place / "dpo" / "provenance.json", {"start_checkpoint": checkpoint_hash(tmp_path / "sft")})
    (place / "dpo" / "adapter_model.safetensors").write_text("weights")
    assert "dpo" not in run_facts(tmp_path), "not finished"
    mark_complete(place / "dpo", {}, {})
    facts = run_facts(tmp_path)
    assert facts["training"]["guards"] == rows and facts["dpo"] == {"steps": 2, "stopped": "why", "kept_step": 0}

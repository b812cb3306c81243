"""Bad input gets an error that names it, what is allowed and what to do, and costs nothing that was finished."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sft.configuration import DpoConfig, SftConfig, read_configuration, read_yaml

PROJECT = Path(__file__).parents[2]
CONFIGURATION = PROJECT / "configs" / "sft.yaml"


def message(error: pytest.ExceptionInfo) -> str:
    """What a user reads; a message for users is no bare name of an exception."""
    text = str(error.value)
    assert len(text) > 40
    return text


def command(script: str, *arguments: str, run: Path, limit_kib: int | None = None) -> str:
    """What `python script --set run=RUN arguments` prints, which must fail with our message and without a traceback."""
    line = [sys.executable, script, "--set", f"run={run}", *arguments]
    if limit_kib is not None:
        # Files longer than this cannot be written: what a full disk does, without one.
        line = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "limited", *line]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    text = ended.stdout + ended.stderr
    assert ended.returncode == 1, text[-3000:]
    assert "\nerror: " in "\n" + text and "Traceback" not in text, text[-3000:]
    return text[text.index("error: "):]


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(("setting", "parts"), [
    ("train.learning_rat=1e-4", ["train.learning_rat: unknown key", "did you mean train.learning_rate?"]),
    ("sead=3", ["sead: unknown key", "did you mean seed?"]),
    ("train.epochs=many", ["train.epochs", "'many'", "number"]),
    ("train.lora_rank=1.5", ["train.lora_rank", "1.5", "integer"]),
    ("train.lora_rank=0", ["train.lora_rank", "0", "greater than or equal to 1"]),
    ("train.precision=fp8", ["train.precision", "'fp8'", "'auto', 'bf16' or 'fp32'"]),
    ("data=embedded", ["data", "'embedded'"]),
    ("train", ["--set train", "no `key=value`", "--set train.epochs=2"]),
])
def test_a_wrong_setting_is_named_with_what_is_allowed(setting, parts):
    with pytest.raises(ValueError) as error:
        read_configuration(SftConfig, CONFIGURATION, [setting])
    for part in parts:
        assert part in message(error)


def test_all_mistakes_of_a_file_are_listed_at_once(tmp_path):
    values = read_yaml(CONFIGURATION)
    del values["seed"]
    values["train"] |= {"epochs": [1], "warmup_shar": values["train"].pop("warmup_share")}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_configuration(SftConfig, file, [])
    found = message(error)
    assert f"{file} has 4 mistake(s):" in found
    for part in ("\n  seed: missing", "\n  train.epochs: found", "\n  train.warmup_share: missing",
                 "\n  train.warmup_shar: unknown key; did you mean train.warmup_share?"):
        assert part in found


def test_a_duplicate_key_is_named_with_its_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIGURATION.read_text(encoding="utf-8") + "seed: 1\n", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_configuration(SftConfig, file, [])
    line = file.read_text(encoding="utf-8").count("\n")
    assert str(file) in message(error) and '"seed"' in message(error) and f"line {line}" in message(error)


def test_a_missing_configuration_file_is_told_with_those_that_are_there():
    with pytest.raises(ValueError) as error:
        read_configuration(DpoConfig, PROJECT / "configs" / "dop.yaml", [])
    assert "configs/dop.yaml does not exist" in message(error) and "configs/dpo.yaml" in message(error)


def test_an_argument_of_trl_that_is_unknown_or_ours_is_refused():
    from dataclasses import make_dataclass

    from sft.trl_arguments import validate_trl

    trl = make_dataclass("SFTConfig", [("weight_decay", float), ("seed", int)])
    validate_trl({"weight_decay": 0.1}, trl, {"seed"})
    with pytest.raises(ValueError, match="train.trl.weight_deca: .*did you mean weight_decay"):
        validate_trl({"weight_deca": 0.1}, trl, {"seed"})
    with pytest.raises(ValueError, match="train.trl.seed: set by this project's own keys"):
        validate_trl({"seed": 1}, trl, {"seed"})


# ---------------------------------------------------------------------- data


def prepare(folder: Path, source: Path, **changes) -> None:
    from sft.examples import prepare

    prepare(folder, **{"source": str(source), "dev": None, "test": None, "columns": {}, "limits": {}, "seed": 0} | changes)


@pytest.mark.parametrize(("change", "parts"), [
    (lambda text: text.replace("}\n", "\n", 1), ["train.jsonl, line 1", "one JSON object a line", "Repair or delete"]),
    (lambda text: text + '{"question": "x"\n', ["train.jsonl, line 49", "Repair or delete that line"]),
    (lambda text: text + "[1, 2]\n", ["train.jsonl, line 49", "JSON list", "one JSON object a line"]),
    (lambda text: text.replace('"answer"', '"sql"'), ["train.jsonl", "answer", "sql", "data.columns"]),
    (lambda text: "", ["train split is empty", "data.source", "Add rows"]),
])
def test_a_bad_data_file_is_named_and_nothing_is_written(change, parts, data_files, tmp_path):
    source = tmp_path / "train.jsonl"
    source.write_text(change((data_files / "train.jsonl").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data", source, dev=str(data_files / "dev.jsonl"), test=str(data_files / "test.jsonl"))
    for part in parts:
        assert part in message(error), message(error)
    assert not (tmp_path / "data").exists()


def test_a_missing_data_file_is_named(tmp_path, data_files):
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data", tmp_path / "trian.jsonl")
    assert "data.source" in message(error) and "trian.jsonl" in message(error) and "Correct the name" in message(error)
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data", data_files / "train.jsonl", dev=str(tmp_path / "dve.jsonl"))
    assert "data.dev" in message(error) and "dve.jsonl" in message(error)


def test_an_empty_split_is_an_error_that_says_which_and_why(tmp_path, data_files):
    empty = tmp_path / "nothing.jsonl"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data", data_files / "train.jsonl", dev=str(empty), test=str(data_files / "test.jsonl"))
    assert "dev split is empty" in message(error) and "data.dev" in message(error)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"question": "q", "context": "CREATE TABLE t (a INTEGER)", "answer": "SELEC a"}) + "\n")
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data", data_files / "train.jsonl", dev=str(bad), test=str(data_files / "test.jsonl"))
    assert "dev split is empty: all 1 rows read were dropped" in message(error)
    assert "quarantine.jsonl" in message(error) and (tmp_path / "data" / "quarantine.jsonl").exists()


# ---------------------------------------------------------------------- models and tokenizers


def changed_copy(model: Path, folder: Path, file: str, remove: str) -> Path:
    """A model's folder without one key of its tokenizer's configuration (and without what a file says of it)."""
    shutil.copytree(model, folder)
    path = folder / file
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop(remove, None)
    path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_a_tokenizer_without_eos_is_refused(tiny_model, tmp_path):
    from sft.checkpoint import load_tokenizer

    load_tokenizer(tiny_model)
    folder = changed_copy(tiny_model, tmp_path / "model", "tokenizer_config.json", "eos_token")
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert str(folder) in message(error) and "no EOS" in message(error) and "Set `eos_token`" in message(error)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_model, tmp_path):
    from sft.checkpoint import load_tokenizer

    folder = changed_copy(tiny_model, tmp_path / "model", "tokenizer_config.json", "chat_template")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert str(folder) in message(error) and "no chat template" in message(error) and "instruct" in message(error)


def test_a_folder_without_a_model_is_refused(tmp_path):
    from sft.checkpoint import resolve_model

    with pytest.raises(ValueError, match="config.json.*model: embedded"):
        resolve_model(str(tmp_path))
    with pytest.raises(ValueError, match="there is no folder .*nowhere.*model: embedded"):
        resolve_model(str(tmp_path / "nowhere"))


@pytest.mark.launch
def test_an_adapter_of_another_base_model_is_refused(finished_run, tiny_model):
    from sft.checkpoint import fingerprint, load_adapter, load_base

    base = load_base(tiny_model, precision="fp32")
    with pytest.raises(ValueError) as error:
        load_adapter(base, finished_run / "sft", base_fingerprint=fingerprint(tiny_model), trainable=False)
    own = json.loads((finished_run / "sft" / "provenance.json").read_text(encoding="utf-8"))
    assert own["base_fingerprint"] != fingerprint(tiny_model)
    for part in (str(finished_run / "sft"), own["model"], own["base_fingerprint"], fingerprint(tiny_model), "Set `model:"):
        assert part in message(error)


# ---------------------------------------------------------------------- files


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    from sft.artefacts import write_json

    path = tmp_path / "facts.json"
    write_json(path, {"old": 1})

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as error:
        write_json(path, {"new": 2})
    for part in (str(path), "No space left on device", "unchanged", "Free space", "run the same command again"):
        assert part in message(error)
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["facts.json"]


def test_a_full_disk_under_torch_and_safetensors_is_told_too(tmp_path):
    from safetensors import SafetensorError

    from sft.artefacts import library_writes

    failures = [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 299584 vs 299472"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ]
    for failure in failures:
        with pytest.raises(OSError, match="could not be written.*Free space"), library_writes(tmp_path):
            raise failure
    with pytest.raises(RuntimeError, match="^shapes"), library_writes(tmp_path):
        raise RuntimeError("shapes differ")


def test_a_folder_made_with_other_settings_is_not_overwritten(tmp_path):
    from sft.artefacts import is_complete, mark_complete

    target = tmp_path / "sft"
    assert not is_complete(target, {"seed": 0, "model": "a"})
    (target / "adapter").write_text("weights")
    mark_complete(target, {"seed": 0, "model": "a"}, {})
    assert is_complete(target, {"seed": 0, "model": "a"})
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        is_complete(target, {"seed": 1, "model": "a"})
    for part in (str(target), "seed: 0 there, 1 now", "--set run=FOLDER", "--overwrite"):
        assert part in message(error)
    assert "model" not in message(error).split("(")[1].split(")")[0]
    assert contents(tmp_path) == before


# ---------------------------------------------------------------------- the real commands


def test_stage_two_without_stage_one_names_the_command(tmp_path):
    text = command("preference/dpo.py", run=tmp_path / "run")
    assert f"accelerate launch sft/run.py --set run={tmp_path / 'run'}" in text
    assert not (tmp_path / "run").exists()


def test_a_mistyped_key_stops_a_command_before_anything_is_made(tmp_path):
    text = command("sft/run.py", "train.epoch=2", run=tmp_path / "run")
    assert "train.epoch: unknown key; did you mean train.epochs?" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.launch
def test_a_hub_that_cannot_be_reached_names_the_embedded_model(tmp_path, sft_settings):
    text = command("sft/run.py", *sft_settings, "model=nobody/nothing", run=tmp_path / "run")
    for part in ("model: nobody/nothing", "hub", "local folder", "model: embedded"):
        assert part in text
    assert (tmp_path / "run" / "data" / "complete.json").exists() and not (tmp_path / "run" / "sft").exists()


@pytest.mark.launch
def test_a_finished_run_keeps_its_files_when_other_settings_are_refused(finished_run, sft_settings, dpo_settings):
    before = contents(finished_run)
    with ThreadPoolExecutor(2) as two:
        sft = two.submit(command, "sft/run.py", *sft_settings, "train.lora_alpha=7", run=finished_run)
        dpo = two.submit(command, "preference/dpo.py", *dpo_settings, "sample.temperature=0.5", run=finished_run)
        batch = two.submit(command, "preference/dpo.py", *dpo_settings, "train.micro_batch_size=3", run=finished_run)
    for part in (f"{finished_run / 'sft'} was made with other settings", "train", "--overwrite"):
        assert part in sft.result()
    assert f"{finished_run / 'round-1' / 'candidates.parquet'} was made with other settings" in dpo.result()
    assert "temperature: 1.0 there, 0.5 now" in dpo.result()
    for part in ("train.global_batch_size 8", "train.micro_batch_size 3", "1 rank(s)"):
        assert part in batch.result()
    assert contents(finished_run) == before


@pytest.mark.launch
def test_a_disk_that_fills_up_in_training_costs_no_finished_work(tmp_path, sft_settings):
    text = command("sft/run.py", *sft_settings, run=tmp_path / "run", limit_kib=100)
    for part in (str(tmp_path / "run" / "sft" / "checkpoints"), "could not be written", "Free space", "same command again"):
        assert part in text
    assert (tmp_path / "run" / "data" / "complete.json").exists()
    assert not (tmp_path / "run" / "sft" / "complete.json").exists()

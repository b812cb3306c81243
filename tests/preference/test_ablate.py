"""Control arms: the plan, who shares whose samples, going on after an interruption, and the table, worked out by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

from preference import ablate, arms, compare_models, dpo, launcher
from preference.arm_results import compared, read_results, summary, training_facts
from preference.arm_table import HEADINGS, PARTS, cells, markdown
from preference.inspection.labels import LabelFile
from preference.report import summarise
from preference.training_inputs import words_hash
from sft.artefacts import atomic_path, is_complete, mark_complete, mark_path, recorded_inputs, write_json
from sft.checkpoint import checkpoint_hash
from sft.configuration import read_configuration

PROJECT = Path(__file__).parents[2]
N = 8
# What stage two reads of stage one's configuration.
STAGE_ONE = {"trust_remote_code": False, "model": "embedded", "evaluate": {"max_new_tokens": 96}, "judge": {"databases": "both"}}
# Which of the eight questions each arm's last adapter gets right; SFT the first two.
RIGHT = {"sft": "11000000", "default-seed0": "11110000", "default-seed1": "11101000", "gold-seed0": "10000000"}
# The first round's pairs: gold gives more.
PAIRS = {"default": 100, "gold": 250}


def adapter(folder: Path, right: str, **provenance) -> Path:
    """An adapter's folder whose weights say which questions it gets right."""
    write_json(folder / "adapter_config.json", {})
    write_json(folder / "provenance.json", {"base_fingerprint": "base", **provenance})
    (folder / "adapter_model.safetensors").write_text(right)
    write_json(folder / "training.json", {"log": [], "dev_after": {"execution_accuracy": right.count("1") / N}})
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a finished stage one in runs/shared, ablation.yaml with two arms, and the stage's configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "PROJECT", tmp_path)
    shared = tmp_path / "runs" / "shared"
    adapter(shared / "sft", RIGHT["sft"])
    mark_complete(shared / "sft", {}, {})
    (shared / "data").mkdir()
    (shared / "data" / "dev.parquet").write_text("questions")
    (shared / "data" / "quarantine.jsonl").write_text("audit\n")
    YAML().dump({"sft": STAGE_ONE, "dpo": {"run": "another"}}, shared / "config.yaml")
    shutil.copy(PROJECT / "configs" / "dpo.yaml", tmp_path / "dpo.yaml")
    YAML().dump({
        "config": "dpo.yaml", "run": "runs/shared", "runs": "runs/arms", "results": "results", "settings": {"train.steps": 6},
        "measure": {"data": "dev", "columns": {}, "limit": None},
        "arms": {"gold": {"seeds": [0], "settings": {"train.loss_type": ["sft"], "train.loss_weights": [1.0]}},
                 "default": {"seeds": [0, 1], "settings": {}}},
    }, tmp_path / "ablation.yaml")
    return tmp_path


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins for the stages behind their real command lines, which do to run folders what those do.

    Gives the list of what was run: (folder, step, configuration), or (folder, "measure", names of the models).

    stages.broken: a folder's name whose training fails, or whose step stages.broken_step; stages.without_pairs: one whose round
    has no pair. stages.kept: the step whose adapter the guards keep, of 6; stages.stopped: whether they stopped training there.
    stages.best: what a later round left published.
    """

    class Calls(list):
        broken: str | None = None
        broken_step = "all"
        best: str | None = None
        without_pairs: str | None = None
        kept = 6
        stopped: str | None = None
        asked = None  # arguments of the last comparison

    calls = Calls()

    def call(self, folder, cores, script, *words):
        monkeypatch.setattr(sys, "argv", [script, *words])
        try:
            (dpo if script == "preference/dpo.py" else compare_models).main()
        except SystemExit as exit:
            raise ValueError(exit.code) from None

    def stage_two(config, steps, overwrite, **commands):
        step = "all" if steps == dpo.STEPS else steps[0]
        run, place = Path(config.run), Path(config.run) / "round-1"
        calls.append((run.name, step, config))
        if (run.name, step) == (calls.broken, calls.broken_step):
            raise ValueError("the machine was switched off")
        if run.name == calls.without_pairs and step == "all":
            raise ValueError("round 1 has no pairs")
        arm, last = (run.parent if run.name == "last" else run).name, run.name == "last"
        for name, of in (("candidates", "sample"), ("verdicts", "judge"), ("pairs", "pairs")):
            file = place / f"{name}.parquet"
            if step == of or (name == "pairs" and step == "all"):
                assert overwrite or not mark_path(file).exists() or name == "pairs", f"{file} was made twice"
                inputs = {"seed": config.seed, "temperature": config.sample.temperature}
                if is_complete(file, inputs, overwrite):
                    continue
                file.parent.mkdir(exist_ok=True)
                file.write_text(name + str(config.seed))
                mark_complete(file, inputs, {"pairs": PAIRS[arm.partition("-")[0]], "seconds": 30,
                                             "labels": words_hash(run / "labels.sqlite")})
            elif step in ("pairs", "all"):
                assert mark_path(file).exists(), f"{file} is missing"
        if step == "all":
            kept = 6 if config.guards.keep == "last" else calls.kept
            stopped = None if config.guards.keep == "last" else calls.stopped
            start = {"start_checkpoint": checkpoint_hash(run / "sft")}
            adapter(place / "dpo", RIGHT[arm] if kept == 6 else RIGHT["sft"], **start)
            if kept != 6:
                adapter(place / "dpo" / "last", "11111111" if stopped else RIGHT[arm], **start)
            rows = [{"step": number, "chosen_logp": -0.5 + number / 60} for number in (0, 3, 6)]
            write_json(place / "dpo" / "training.json", {
                "steps": 6, "kept_step": kept, "stopped": stopped, "guards": rows, "start": {}, "duration_s": 100.0,
                "pairs": PAIRS[arm.partition("-")[0]], "peak_memory_bytes": 5,
                "dev_after": {"execution_accuracy": (RIGHT[arm] if kept == 6 else RIGHT["sft"]).count("1") / N}})
            mark_complete(place / "dpo", {}, {})
            adapter(run / "best", calls.best or (place / "dpo" / "adapter_model.safetensors").read_text())
            write_json(run / "versions.json", {"git_commit": "abc"})
            quarantine = run / "data" / "quarantine.jsonl"
            with atomic_path(quarantine) as temporary:  # as people's word on gold is written
                temporary.write_text(quarantine.read_text() + "gold_wrong\n")

    row = {"kind": [], "reason": "rows", "ended_with_eos": True, "token_count": 20}

    def comparison(arguments):
        models, output, run = compare_models.pairs_of(arguments.models, "--models"), arguments.output, arguments.run
        calls.append((run.name, "measure", list(models)))
        calls.asked = arguments
        assert (run / "data" / "dev.parquet").exists()
        if run.name == "sft":
            assert compare_models.run_facts(run)["config"] == {"sft": STAGE_ONE}, "a folder of measures alone"
        if arguments.data.endswith(".jsonl"):
            (output / "data-questions").mkdir(parents=True, exist_ok=True)
        kept = output / "answers" / "sft.parquet"
        assert kept.exists() == (run.name != "sft"), "SFT answers once, and all arms take its answers"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("answers")
        mark_complete(kept, {}, {})
        rows = {name: [row | {"example_id": f"q{number}", "verdict": "correct" if mark == "1" else "wrong"}
                       for number, mark in enumerate((Path(path) / "adapter_model.safetensors").read_text())]
                for name, path in models.items()}
        write_json(output / "report.json", summarise("dev", rows, {}))

    monkeypatch.setattr(launcher.Launcher, "call", call)
    monkeypatch.setattr(launcher.ranks, "prepare_environment", lambda distributed: None)
    monkeypatch.setattr(dpo, "run", stage_two)
    monkeypatch.setattr(compare_models, "compare", comparison)
    return calls


def run(monkeypatch, capsys, *arguments):
    """The command in this process: (what it exits with, None where it ends by itself; what it printed)."""
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--config", "ablation.yaml", *map(str, arguments)])
    try:
        ablate.main()
    except SystemExit as exit:
        return exit.code, capsys.readouterr().out
    return None, capsys.readouterr().out


# ------------------------------------------------------------------- the list of arms


def test_the_projects_own_list_is_valid_and_every_key_has_a_comment():
    path = PROJECT / "configs" / "ablation.yaml"
    config = read_configuration(arms.AblationConfig, path, [])
    runs = arms.planned(config)
    assert {arm: len(found.seeds) for arm, found in config.arms.items()}.items() >= {
        "default": 3, "sft-on-chosen": 3, "sft-on-gold": 1, "random-pairs": 3, "flipped": 1}.items()
    assert runs[0].name == "default-seed0" and runs[0].settings == config.settings
    assert {run.config.train.steps for run in runs} == {60}, "all arms train for as many steps"
    # Under either configuration one arm is without the balance of structure, and no arm is another once more.
    for other in ("dpo.yaml", "dpo-create-context.yaml"):
        config.config = str(PROJECT / "configs" / other)
        planned = arms.planned(config)
        assert len(arms.chosen(planned, None)) == len(planned) and {run.config.rounds for run in planned} == {1}
        found = {run.arm: run.config.pairs.balance_structure for run in planned}
        assert [arm for arm, balanced in found.items() if not balanced] == ["unbalanced"]
    # One sampling a seed serves all arms.
    assert {arms.sampler_of(run, runs).name for run in runs} == {"default-seed0", "default-seed1", "default-seed2"}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        key = line.strip().partition(":")[0]
        if key not in ("seeds", "settings", "measure", "") and not key.startswith("#") and not lines[number - 1].endswith(","):
            assert lines[number - 1].strip().startswith("#"), f"no comment above {key}"


def test_settings_are_taken_dotted_and_as_sections(project):
    path = project / "ablation.yaml"
    values = YAML(typ="safe").load(path.read_text())
    values["arms"]["gold"]["settings"] |= {"train": {"beta": 0.3, "trl": {"ld_alpha": 0.5}}, "pairs": {"per_question": 1}}
    YAML().dump(values, path)

    def gold(*settings: str) -> arms.ArmRun:
        return arms.planned(read_configuration(arms.AblationConfig, path, list(settings)))[-1]

    assert gold().settings == {
        "train.steps": 6, "train.loss_type": ["sft"], "train.loss_weights": [1.0], "train.beta": 0.3,
        "train.trl": {"ld_alpha": 0.5}, "pairs.per_question": 1}
    train = gold("settings.train.steps=100").config.train
    assert (train.steps, train.beta, train.trl) == (100, 0.3, {"ld_alpha": 0.5})
    # An arm's own go before those of all; a section of the file keeps its other keys.
    run = gold("settings.train.steps=100", "arms.gold.settings.train.steps=50", "arms.gold.settings.train.trl={}")
    assert (run.config.train.steps, run.config.train.beta, run.config.train.trl) == (50, 0.3, {})
    # Dotted names with a map, as before.
    assert gold("arms.gold.settings={train.trl: {ld_alpha: 0.25}}").config.train.trl == {"ld_alpha": 0.25}
    for whole in ({"train.trl": {"ld_alpha": 0.5}, "train": {"trl": {}}}, {"train": {"trl": {}}, "train.trl": {"ld_alpha": 0.5}}):
        assert arms.flat(whole) == {"train.trl": {}}
    # Which form came first is no matter: that of --set counts.
    assert arms.flat({"train": {"beta": 0.3, "steps": 100}, "train.steps": 60}) == {"train.steps": 100, "train.beta": 0.3}
    with pytest.raises(ValueError, match="settings: found 3; "):
        gold("settings=3")
    with pytest.raises(ValueError, match="1 mistake.*\n  train.step: unknown key; did you mean train.steps"):
        gold("settings.train.step=5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["arms.default.settings={train.epoch: 2}"], "arm default: dpo.yaml with --set has 1 mistake(s):\n  train.epoch: unkn"),
        (["settings={train.steps: 0}"], "arm default: dpo.yaml with --set has 1 mistake(s):\n  train.steps: found 0; input"),
        (["arms.default.seeds=[1, 1]"], "arms.default.seeds: [1, 1] names a seed twice"),
        (["arms.default.seeds=[]"], "arms.default.seeds: found []"),
        (["arms.default.settings={seed: 3}"], "arms.default: settings must not hold seed"),
        (["arms.sft={seeds: [0], settings: {}}"], "arms.sft: not a name for files"),
        (["arms.gold.settings={train.beta: 0.1, judge.workers: 1}"], "arms gold and default are the same (seed 0). Each arm must"),
        (["run=runs/none"], "run: runs/none holds no finished SFT adapter (no runs/none/sft/complete.json). All arms start"),
        (["measure={data: dev}"], "measure.columns: missing"),
        (["arms.gold.settings={train.trl: {ld_alfa: 0.5}}"], "arm gold: train.trl.ld_alfa: DPOConfig has no such argument"),
        (["arms.gold.settings={train.micro_batch_size: 3}"], "arm gold: train.global_batch_size"),
        (["arms.gold.settings={evaluate.max_new_tokens: 64}"], "arm gold: evaluate.max_new_tokens is 64 here and was 96"),
        (["settings.train.label_noise=from-labels", "settings.train.loss_type=[robust]", "settings.train.loss_weights=[1.0]",
          "arms={default: {seeds: [0], settings: {}}}"], "arm default: train.label_noise is from-labels, but there is no"),
    ],
)
def test_mistakes_are_named_before_anything_runs(project, stages, monkeypatch, capsys, settings, message):
    code, _ = run(monkeypatch, capsys, "--set", *settings)
    assert message in code and not stages


def test_an_unknown_arm_is_named(project, stages, monkeypatch, capsys):
    code, _ = run(monkeypatch, capsys, "--arms", "default", "goldd")
    assert code.startswith("error: --arms goldd: no such arm. Arms: default, gold. Name some of those") and not stages


@pytest.mark.parametrize("settings", [
    ["settings.train.margin_scale=1.0"], ["settings.train.reference_weight=0.5"], ["settings.train.shared_token_weight=0.5"],
    ["settings.train.loss_type=[robust]", "settings.train.loss_weights=[1.0]", "settings.train.label_smoothing=0.1"],
    ["settings.train.loss_type=[robust]", "settings.train.loss_weights=[1.0]", "settings.train.label_noise=0.1"],
    ["settings.train.loss_type=[ipo]", "settings.train.loss_weights=[1.0]"], ["settings.pairs.graded=true"]])
def test_the_projects_arms_go_with_every_loss(settings):
    config = read_configuration(arms.AblationConfig, PROJECT / "configs" / "ablation.yaml", settings)
    runs = {run.arm: run.config.train for run in arms.planned(config)}
    plain = arms.planned(read_configuration(arms.AblationConfig, PROJECT / "configs" / "ablation.yaml", []))
    for arm in ("sft-on-chosen", "sft-on-gold"):
        assert runs[arm] == next(run.config.train for run in plain if run.arm == arm), "what is for preference losses changes no SFT"
    assert runs["default"] != next(run.config.train for run in plain if run.arm == "default") or "pairs" in settings[0]


@pytest.mark.parametrize(("options", "named"), [
    (["--arms", "default"], "--arms"), (["--set", "run=x", "--overwrite"], "--set, --overwrite"), (["--launch", "x.yaml", "--jobs", "2"], "--jobs, --launch")])
def test_options_for_running_arms_do_not_go_with_a_table(project, monkeypatch, capsys, options, named):
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--table", "results", *options])
    with pytest.raises(SystemExit) as exit:
        ablate.main()
    assert exit.value.code == 2 and f"{named}: for running arms, and --table shows" in capsys.readouterr().err


def test_arms_that_are_the_same_matter_only_where_both_are_asked_for():
    config = read_configuration(arms.AblationConfig, PROJECT / "configs" / "ablation.yaml", ["settings.pairs.balance_structure=false"])
    runs = arms.planned(config)
    with pytest.raises(ValueError, match="arms unbalanced and default are the same .*name with --arms those to run"):
        arms.chosen(runs, None)
    assert [run.arm for run in arms.chosen(runs, ["default", "flipped"])] == ["default"] * 3 + ["flipped"]


# ------------------------------------------------------------------- running them


def test_arms_share_samples_and_steps_and_leave_one_file_each(project, stages, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys)
    assert code is None
    steps = [(name, step) for name, step, _ in stages]
    # SFT is measured once, and a seed is sampled once.
    assert steps == [
        ("sft", "measure"), ("default-seed0", "sample"), ("default-seed0", "judge"), ("default-seed1", "sample"),
        ("default-seed1", "judge"), ("default-seed0", "all"), ("default-seed0", "measure"),
        ("default-seed1", "all"), ("default-seed1", "measure"), ("gold-seed0", "all"), ("gold-seed0", "measure")]
    assert (project / "runs/arms/gold-seed0/round-1/candidates.parquet").read_text() == "candidates0"
    [gold] = [config for name, step, config in stages if (name, step) == ("gold-seed0", "all")]
    assert gold.train.loss_type == ["sft"] and gold.train.steps == 6
    assert {path.name for path in (project / "results").iterdir()} == {
        "sft.json", "default-seed0.json", "default-seed1.json", "gold-seed0.json"}
    result = json.loads((project / "results" / "gold-seed0.json").read_text())
    assert result["models"]["last"]["right"] == RIGHT["gold-seed0"] and result["models"]["last"]["execution_accuracy"] == 1 / 8
    assert (result["arm"], result["seed"], result["pairs"], result["steps"], result["n"]) == ("gold", 0, 250, 6, N)
    assert result["commit"] == "abc" and result["cost"]["samples_of"] == "default-seed0" and result["cost"]["train_s"] == 100
    assert result["chosen_logp"] == [{"start": -0.5, "last": pytest.approx(-0.4), "kept": pytest.approx(-0.4)}]
    command = shlex.split(result["command"])
    assert command[:6] == ["accelerate", "launch", "preference/dpo.py", "--config", "dpo.yaml", "--set"]
    assert {'train.loss_type=["sft"]', "seed=0", "run=runs/arms/gold-seed0"} < set(command)
    assert str(project) not in json.dumps(result)
    assert "[3/3] gold-seed0: finished in" in printed and "about 0 min left" in printed
    assert "At the last step" in printed and "gold" in printed.split("Arm")[-1]
    # What is shared is linked, and only read: what an arm writes into its data is its own.
    own, shared = (project / folder / "data" / "quarantine.jsonl" for folder in ("runs/arms/gold-seed0", "runs/shared"))
    assert (own.read_text(), shared.read_text()) == ("audit\ngold_wrong\n", "audit\n")
    assert (project / "runs/arms/gold-seed0/sft").resolve() == project / "runs/shared/sft"
    assert sorted(path.name for path in (project / "runs/shared").iterdir()) == ["config.yaml", "data", "sft"]


def test_a_set_goes_on_where_it_stopped(project, stages, monkeypatch, capsys):
    stages.broken = "default-seed1"
    code, printed = run(monkeypatch, capsys)
    assert code == "error: 1 of 3 could not be finished:\ndefault-seed1: error: the machine was switched off"
    assert "[2/3] default-seed1: failed" in printed  # the others are through all the same
    kept = (project / "results" / "gold-seed0.json").read_text()
    stages.clear()
    stages.broken = None
    code, printed = run(monkeypatch, capsys)
    assert code is None and "3 runs, 2 of them have their result in results" in printed
    assert [(name, step) for name, step, _ in stages] == [("default-seed1", "all"), ("default-seed1", "measure")]
    assert (project / "results" / "gold-seed0.json").read_text() == kept
    stages.clear()
    assert run(monkeypatch, capsys)[0] is None and not stages


def test_a_result_of_other_settings_is_not_overwritten_unasked(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold")
    stages.clear()
    settings = ["--arms", "gold", "--set", "arms.gold.settings={train.beta: 0.3}"]
    code, _ = run(monkeypatch, capsys, *settings)
    assert code.startswith("error: results/gold-seed0.json was measured with other settings (") and not stages
    assert "train.beta: 0.1 there, 0.3 now" in code and "--overwrite to run this arm anew" in code
    # How the work is cut up changes no result.
    settings = ["--arms", "gold", "--set", "settings={train.steps: 6, train.share_prompts: false, judge.workers: 1}"]
    assert run(monkeypatch, capsys, *settings)[0] is None and not stages


def test_the_micro_batch_is_part_of_a_result_with_the_sft_loss_alone(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold")
    stages.clear()
    smaller = ["--arms", "gold", "--set", "settings={train.steps: 6, train.micro_batch_size: 2}"]
    code, _ = run(monkeypatch, capsys, *smaller)
    assert "train.micro_batch_size: 4 there, 2 now" in code and not stages
    sigmoid = "arms.gold.settings={train.loss_type: [sigmoid], train.loss_weights: [1.0]}"
    for size in (4, 2):
        settings = ["--set", sigmoid, "results=sigmoid", "runs=runs/sigmoid", f"settings={{train.micro_batch_size: {size}}}"]
        assert run(monkeypatch, capsys, "--arms", "gold", *settings)[0] is None
    assert [step for name, step, _ in stages if name == "gold-seed0"].count("all") == 1


def test_peoples_labels_are_part_of_a_result(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold")
    pairs = project / "runs/arms/gold-seed0/round-1/pairs.parquet"
    labels = LabelFile(project / "runs/shared/labels.sqlite")
    labels.add("pair", "ada", "gold_wrong")
    labels.close()
    words = words_hash(labels.path)
    code, _ = run(monkeypatch, capsys, "--arms", "gold")
    assert code.startswith("error: results/gold-seed0.json was measured with other settings (labels: None there, ")
    code, _ = run(monkeypatch, capsys, "--arms", "gold", "--set", "results=labelled")
    assert "pairs.parquet was built with other labels of people (hash None; " in code
    assert pairs.exists() and not (project / "labelled/gold-seed0.json").exists()
    assert run(monkeypatch, capsys, "--arms", "gold", "--overwrite")[0] is None
    assert json.loads(mark_path(pairs).read_text())["rows"]["labels"] == words
    assert json.loads((project / "results/gold-seed0.json").read_text())["identity"]["labels"] == words


def test_what_is_measured_as_published_is_of_the_rounds_that_were_asked_for(project, stages, monkeypatch, capsys):
    """RUN/best is the best of all rounds that are there: here of one that a larger `rounds` left."""
    stages.best = "11111111"
    assert run(monkeypatch, capsys, "--arms", "default", "--set", "arms.default.seeds=[0]")[0] is None
    result = json.loads((project / "results/default-seed0.json").read_text())
    assert (result["published_is"], result["models"]["published"]["right"]) == ("last", RIGHT["default-seed0"])


def test_arms_whose_samples_could_not_be_drawn_stop_no_other(project, stages, monkeypatch, capsys):
    stages.broken, stages.broken_step = "default-seed0", "judge"
    code, printed = run(monkeypatch, capsys)
    assert code == ("error: 1 of 2 could not be sampled:\ndefault-seed0: error: the machine was switched off\n"
                    "not run, since their samples are missing: default-seed0, gold-seed0")
    assert "[1/1] default-seed1: finished" in printed
    assert {path.name for path in (project / "results").iterdir()} == {"sft.json", "default-seed1.json"}


def test_samples_of_an_arms_own_are_not_overwritten_unasked(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold", "--set", "arms.gold.settings={sample.temperature: 0.7}")
    own = project / "runs/arms/gold-seed0/round-1/candidates.parquet"
    code, _ = run(monkeypatch, capsys, "--arms", "gold", "--set", "results=again")
    assert "candidates.parquet was made with other settings or inputs (temperature: 0.7 there, 1.0 now)" in code
    assert code.endswith("For arms, another folder is --set runs=FOLDER results=FOLDER, and --overwrite is an option of "
                         "preference/ablate.py, too.")
    assert recorded_inputs(own)["temperature"] == 0.7 and own.exists()
    assert run(monkeypatch, capsys, "--arms", "gold", "--overwrite", "--set", "results=again")[0] is None
    assert recorded_inputs(own)["temperature"] == 1.0 and own.read_text() == "candidates0"


def test_marks_without_their_files_are_no_samples(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold")
    sampler, own = (project / f"runs/arms/{name}-seed0" for name in ("default", "gold"))
    for folder, finished in ((own, False), (sampler, True)):
        assert arms.sampled(folder)
        (folder / "round-1/verdicts.parquet").unlink()
        assert not arms.sampled(folder) and mark_path(folder / "round-1/verdicts.parquet").exists()
        if not finished:
            arms.copy_steps(sampler / "round-1", own / "round-1", arms.SAMPLED, overwrite=False)
            assert arms.sampled(own)


def test_the_questions_of_a_folder_are_known_by_their_content(project):
    config = read_configuration(arms.AblationConfig, project / "ablation.yaml", ["measure.data=asked"])
    (project / "asked").mkdir()
    found = []
    for name, text in (("test.jsonl", "one"), ("test.jsonl", "two"), ("dev.jsonl", "one")):
        (project / "asked" / name).write_text(text)
        found.append(arms.questions_hash(config))
    assert len(set(found)) == 3 and None not in found
    config.measure.data = "owner/name"
    assert arms.questions_hash(config) is None
    config.measure.data = "none.jsonl"
    with pytest.raises(ValueError, match="measure.data: there is no file or folder none.jsonl"):
        arms.questions_hash(config)


def test_arms_with_other_sampling_sample_for_themselves(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold", "--set", "arms.gold.settings={sample.temperature: 0.7}")
    assert [(name, step) for name, step, _ in stages] == [
        ("sft", "measure"), ("gold-seed0", "sample"), ("gold-seed0", "judge"), ("gold-seed0", "all"), ("gold-seed0", "measure")]


@pytest.mark.parametrize("stopped", [None, "accuracy fell"])
def test_the_last_step_where_the_guards_intervened(project, stages, monkeypatch, capsys, stopped):
    """An earlier step was kept: the last one's adapter stands beside it. Training was stopped: it is done again without."""
    stages.kept, stages.stopped = 3, stopped
    assert run(monkeypatch, capsys, "--arms", "default", "--set", "arms.default.seeds=[0]")[0] is None
    ways = [(name, config.guards.keep, config.guards.stop) for name, step, config in stages if step == "all"]
    assert ways == [("default-seed0", "best", True), ("last", "last", False)][: 2 if stopped else 1]
    # The kept adapter is SFT's, byte for byte: nobody is asked twice.
    assert stages[-1] == ("default-seed0", "measure", ["sft", "last"])
    result = json.loads((project / "results" / "default-seed0.json").read_text())
    assert result["models"]["last"]["right"] == RIGHT["default-seed0"] and result["models"]["published"]["right"] == RIGHT["sft"]
    assert (result["published_is"], result["kept_steps"], result["stopped"]) == ("sft", [3], [stopped])
    assert result["cost"]["train_s"] == (200 if stopped else 100) and result["chosen_logp"][0]["last"] == pytest.approx(-0.4)
    # At step 3 of 6: -0.5 + 3 / 60, also where training was done again to the last step.
    assert result["kept_chosen_logp"][0]["kept"] == pytest.approx(-0.45)


def test_with_later_rounds_the_last_step_is_trained_again(project, stages, monkeypatch, capsys):
    """Round 2 started from what the guards gave back after round 1, not from its last step."""
    stages.kept = 3
    assert run(monkeypatch, capsys, "--arms", "gold", "--set", "settings={rounds: 2}")[0] is None
    assert [name for name, step, _ in stages if step == "all"] == ["gold-seed0", "last"]


def test_rounds_that_other_settings_left_do_not_count(project, stages, monkeypatch, capsys):
    start = checkpoint_hash(project / "runs/shared/sft")
    for number, provenance in ((2, "weights that are gone"), (3, start)):
        old = adapter(project / f"runs/arms/gold-seed0/round-{number}/dpo", "11111111", start_checkpoint=provenance)
        write_json(old / "training.json", {"steps": 99, "pairs": 99, "duration_s": 99})
        mark_complete(old, {}, {})
    for rounds in (1, 3):
        settings = [f"settings={{rounds: {rounds}}}", f"results=rounds-{rounds}"]
        assert run(monkeypatch, capsys, "--arms", "gold", "--set", *settings)[0] is None
        result = json.loads((project / f"rounds-{rounds}/gold-seed0.json").read_text())
        assert (result["rounds"], result["steps"], result["models"]["last"]["right"]) == (1, 6, RIGHT["gold-seed0"])


def test_an_arm_without_a_pair_leaves_no_result(project, stages, monkeypatch, capsys):
    stages.without_pairs = "gold-seed0"
    code, _ = run(monkeypatch, capsys, "--arms", "gold")
    assert code == "error: 1 of 1 could not be finished:\ngold-seed0: error: round 1 has no pairs"
    assert not (project / "results" / "gold-seed0.json").exists()
    with pytest.raises(ValueError, match="holds no finished round that started from .*sft. An arm needs at least one"):
        training_facts(project / "runs/arms/gold-seed0", 1)


def test_results_that_came_without_their_run_folders_take_further_arms(project, stages, monkeypatch, capsys):
    """A clone holds the committed results, and no folder of the runs: SFT's answers are made before anything is trained."""
    run(monkeypatch, capsys, "--arms", "gold")
    before = (project / "results" / "sft.json").read_bytes()
    shutil.rmtree(project / "runs" / "arms")
    stages.clear()
    assert run(monkeypatch, capsys, "--arms", "gold")[0] is None and not stages, "nothing to do"
    code, printed = run(monkeypatch, capsys, "--arms", "default")
    assert code is None and "[1/1] sft: answered in" in printed
    assert [(name, step) for name, step, _ in stages][:2] == [("sft", "measure"), ("default-seed0", "sample")]
    assert (project / "results" / "default-seed1.json").exists() and (project / "results" / "sft.json").read_bytes() == before
    stages.clear()
    run(monkeypatch, capsys, "--set", "arms.gold.seeds=[0]", "arms.default.seeds=[0]")
    assert not stages


def test_data_that_was_linked_as_a_whole_is_linked_file_by_file(project):
    shared, folder = project / "runs/shared", project / "runs/old"
    folder.mkdir()
    (folder / "data").symlink_to(shared / "data")
    config = read_configuration(arms.AblationConfig, project / "ablation.yaml", [])
    for _ in range(2):
        arms.prepare_folder(folder, config, {})
        assert not (folder / "data").is_symlink() and (folder / "data/dev.parquet").resolve() == shared / "data/dev.parquet"
    assert sorted(path.name for path in (shared / "data").iterdir()) == ["dev.parquet", "quarantine.jsonl"]
    (folder / "data/dev.parquet").unlink()
    (folder / "data/dev.parquet").symlink_to(project / "dpo.yaml")
    with pytest.raises(ValueError, match="dev.parquet leads to .*dpo.yaml, and the shared run is runs/shared"):
        arms.prepare_folder(folder, config, {})


def test_labels_of_an_arms_own_go_with_its_training_without_guards(project):
    config, folder = read_configuration(arms.AblationConfig, project / "ablation.yaml", []), project / "runs/old"
    (project / "runs/shared/labels.sqlite").write_bytes(b"shared")
    arms.prepare_folder(folder / "last", config, {})
    assert (folder / "last/labels.sqlite").read_bytes() == b"shared"
    (folder / "labels.sqlite").write_bytes(b"own")
    for labels, found in ((folder / "labels.sqlite", b"own"), (None, b"shared")):
        arms.prepare_folder(folder / "last", config, {}, labels)
        assert (folder / "last/labels.sqlite").read_bytes() == found and (folder / "labels.sqlite").read_bytes() == b"own"


def test_paths_with_signs_beyond_the_basic_ones_reach_the_stage():
    assert arms.settings_of({"run": "a😀/x"}) == ['run="a😀/x"']


def test_a_run_folder_tells_of_stage_one_as_it_is_now(project):
    config, folder = read_configuration(arms.AblationConfig, project / "ablation.yaml", []), project / "runs/old"
    arms.prepare_folder(folder, config, {"model": "embedded"})
    YAML().dump({"sft": {"model": "embedded"}, "dpo": {"seed": 3}}, folder / "config.yaml")
    arms.prepare_folder(folder, config, {"model": "another"})
    assert arms.recorded_configurations(folder) == {"sft": {"model": "another"}, "dpo": {"seed": 3}}


def test_trained_arms_are_measured_on_other_questions_too(project, stages, monkeypatch, capsys):
    run(monkeypatch, capsys, "--arms", "gold")
    asked = stages.asked
    (project / "dev.jsonl").write_text("{}")
    assert (asked.data, asked.limit, asked.columns, asked.max_new_tokens, asked.databases) == ("dev", None, [], 96, "both")
    settings = ["results=report", "measure={data: dev.jsonl, columns: {gold: query}, limit: 5}"]
    assert run(monkeypatch, capsys, "--arms", "gold", "--set", *settings)[0] is None
    assert (stages.asked.data, stages.asked.limit, stages.asked.columns) == ("dev.jsonl", 5, ["gold=query"])
    assert stages.asked.output.parent == Path("runs/arms/gold-seed0/measured")
    # What a file's rows are audited into is made once.
    audited = project / "runs/arms/sft/measured" / stages.asked.output.name / "data-questions"
    assert audited.exists() and (stages.asked.output / "data-questions").resolve() == audited
    # The same run folder, so nothing is sampled again, and training finds itself complete.
    assert [step for name, step, _ in stages].count("sample") == 1
    assert json.loads((project / "report/gold-seed0.json").read_text())["data"] == "dev.jsonl"
    assert (project / "results/gold-seed0.json").exists()
    # Results folders of one name, about different questions, keep answers of their own.
    settings = ["results=other/report", "measure={data: dev.jsonl, columns: {gold: query}, limit: 6}"]
    outputs = {stages.asked.output}
    assert run(monkeypatch, capsys, "--arms", "gold", "--set", *settings)[0] is None
    assert stages.asked.output not in outputs and stages.asked.output.name.startswith("report-")


def test_a_set_that_is_stopped_stops_its_commands(tmp_path):
    started = launcher.Launcher(1, None)
    started.accelerate = [sys.executable, "-c", "import time; time.sleep(60)"]

    def stop():
        while not started.running:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    begun = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        started.all({name: lambda cores: started.call(tmp_path, cores, "stage.py") for name in "ab"}, "done")
    assert stopped.value.code == 143 and not started.running and time.monotonic() - begun < 30


def test_two_jobs_run_at_once_each_on_its_own_cores(monkeypatch):
    monkeypatch.setattr(launcher.ranks, "cores", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {4, 7}, raising=False)
    meeting, found = threading.Barrier(2, timeout=10), {}

    def work(name, cores):
        meeting.wait()  # passes only if both are here
        found[name] = cores

    launcher.Launcher(2, None).all({name: lambda cores, name=name: work(name, cores) for name in "ab"}, "done")
    assert sorted(found.values()) == [[4], [7]]
    with pytest.raises(ValueError, match=r"--jobs 3: this machine offers 2 core\(s\). Allowed is 1 to 2"):
        launcher.Launcher(3, None)


def test_a_failure_is_not_told_in_the_words_of_an_earlier_attempt(tmp_path):
    started = launcher.Launcher(1, None)
    for words, told in (("error: no room", "error: no room"), ("Killed", "Killed"), (0, "(no output)")):
        started.accelerate = [sys.executable, "-c", f"import sys; sys.exit({words!r})" if words else "import os; os._exit(9)"]
        with pytest.raises(ValueError, match=re.escape(f": {told}\n")):
            started.call(tmp_path, [], "stage.py")
    assert (tmp_path / "ablate.log").read_text() == "error: no room\nKilled\n", "the log keeps all attempts"


def test_what_to_do_is_told_however_long_a_message_is(tmp_path):
    started = launcher.Launcher(1, None)
    words = f"error: made with other settings {'x' * 2000}: choose another folder (--set run=FOLDER)"
    started.accelerate = [sys.executable, "-c", f"import sys; sys.exit({words!r})"]
    with pytest.raises(launcher.WorkFailed, match=r"x \.\.\. x.*run=FOLDER\)\n.*\nFor arms, .* runs=FOLDER results=") as told:
        started.all({"arm": lambda cores: started.call(tmp_path, cores, "stage.py")}, "done")
    assert told.value.names == {"arm"} and len(str(told.value)) < 1600


def test_calls_that_run_at_once_do_not_meet_on_one_port(tmp_path):
    accelerate = launcher.Launcher(1, "launch/cpu-2-ranks.yaml").accelerate
    assert accelerate[-4:] == ["--main_process_port", "0", "--config_file", "launch/cpu-2-ranks.yaml"]


def test_a_failure_of_any_kind_stops_no_other_work(capsys):
    done = []

    def work(name: str) -> None:
        {"a": 1}[name]
        done.append(name)

    with pytest.raises(launcher.WorkFailed) as told:
        launcher.Launcher(1, None).all({name: lambda cores, name=name: work(name) for name in "ba"}, "done")
    assert done == ["a"] and told.value.names == {"b"} and str(told.value) == "1 of 2 could not be done:\nb: KeyError('b')"
    assert "Traceback" in capsys.readouterr().err


def test_a_failing_command_is_told_with_its_last_words_and_its_log(tmp_path):
    started = launcher.Launcher(1, None)
    started.accelerate = [sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit('error: no room')"]
    with pytest.raises(ValueError, match="accelerate launch stage.py ended with exit status 1: error: no room") as error:
        started.call(tmp_path / "run", [], "stage.py")
    assert str(tmp_path / "run" / "ablate.log") in str(error.value)
    assert (tmp_path / "run" / "ablate.log").read_text() == f"{PROJECT / 'stage.py'}\nerror: no room\n"


# ------------------------------------------------------------------- the table


def write(folder: Path, name: str, models: dict[str, str], **more) -> None:
    """A result file with what the table reads."""
    arm, _, seed = name.partition("-seed")
    write_json(folder / f"{name}.json", {
        "arm": arm, "seed": int(seed) if seed else None, "data": "dev", "n": N, "questions": "hash", "pairs": 10, "steps": 6,
        "chosen_logp": [{"start": -0.5, "last": -0.45, "kept": -0.48}], "rounds": 1, "kept_steps": [4], "stopped": [None],
        "published_is": "published" if len(set(models.values())) > 1 else "last", "models": {
            state: {"right": right, "execution_accuracy": right.count("1") / N, "valid_sql": 0.875, "unclear": 0.0,
                    "ended_with_eos": 1.0, "mean_tokens": 20.0} for state, right in models.items()}} | more)


@pytest.fixture
def results(tmp_path):
    """SFT right on 2 of 8; default on 4 and 3, of which it publishes SFT's once; random on 1, with one seed."""
    write(tmp_path, "sft", {"sft": "11000000"})
    write(tmp_path, "default-seed0", {"last": "11110000", "published": "11110000"})
    nothing = {"start": -0.5, "last": None, "kept": -0.5}
    sft = {"published_is": "sft"}
    write(tmp_path, "default-seed1", {"last": "11001000", "published": "11000000"}, steps=7, chosen_logp=[nothing], **sft)
    write(tmp_path, "random-seed0", {"last": "10000000", "published": "11000000"}, chosen_logp=[None], **sft)
    return tmp_path


def test_the_table_by_hand(results):
    table = summary(results)
    assert (table["n"], table["sft"]["execution_accuracy"]) == (8, 0.25)
    assert [row["arm"] for row in table["last"]] == ["default", "random"]
    default, random = table["last"]
    assert (default["seeds"], default["accuracies"], default["execution_accuracy"]) == ([0, 1], [0.5, 0.375], 0.4375)
    assert (default["steps"], default["chosen_logp_change"]) == (6.5, pytest.approx(0.05))
    against = default["against_sft"]
    # Gains of 2 and 1 of 8 questions, of 6 errors: means 1.5 / 8 and 1.5 / 6.
    assert (against["difference"], against["error_reduction"]) == (pytest.approx(0.1875), pytest.approx(0.25))
    assert against["interval"] == "paired bootstrap" and against["mcnemar_p"] == [0.5, 1.0]
    # Three of the eight questions gain 1/2: two of the 2³ choices of signs are as far from 0.
    assert (against["test"], against["p"]) == ("paired permutation (sign flip)", 0.25)
    # Of the draws (5/8)^8 = 0.0233 are 0, less than 2.5 %, and the next are 1/16.
    assert against["ci95"][0] == pytest.approx(1 / 16)
    # One seed: McNemar. random loses one of SFT's two: 0 gained, 1 lost.
    against = random["against_sft"]
    assert (against["test"], against["gained"], against["lost"], against["p"]) == ("McNemar", 0, 1, 1.0)
    assert against["error_reduction"] == pytest.approx(-1 / 6)
    # On seed 0, the one that both have, default is right on three more and wrong on none: p = 2 / 2³.
    better = random["behind"]
    assert (better["seeds"], better["difference"], better["p"]) == ([0], 0.375, 0.25)
    published = table["published"]
    assert published[0]["accuracies"] == [0.5, 0.25] and published[1]["against_sft"]["p"] == 1.0
    # Seed 0 published its last step (6 steps, +0.05), the others SFT.
    assert (published[0]["steps"], published[0]["chosen_logp_change"]) == (3, pytest.approx(0.025))
    assert (published[1]["steps"], published[1]["chosen_logp_change"]) == (0, 0)
    json.dumps(table, allow_nan=False)


def test_arms_on_several_adapters_are_each_compared_with_their_own(results, tmp_path, monkeypatch, capsys):
    second = tmp_path / "second"
    write(second, "sft", {"sft": "00001111"})
    write(second, "default-seed2", dict.fromkeys(("last", "published"), "00011111"))
    write(second, "random-seed1", dict.fromkeys(("last", "published"), "00001111"))
    write(second, "alone-seed2", dict.fromkeys(("last", "published"), "11001111"))
    table = summary(results, second)
    # SFT has 2 and 4 of 8.
    assert (table["sft"]["execution_accuracy"], table["sft"]["accuracies"]) == (0.375, [0.25, 0.5])
    default, alone, random = table["last"]
    assert [row["arm"] for row in table["last"]] == ["default", "alone", "random"]
    # Gains 2 and 1 of the first adapter's 6 errors each, and 1 of the second's 4: 4 of 16.
    assert (default["seeds"], default["against_sft"]["difference"]) == ([0, 1, 2], pytest.approx(4 / 24))
    assert default["against_sft"]["error_reduction"] == pytest.approx(4 / 16) and default["against_sft"]["mcnemar_p"][2] == 1.0
    # Three questions gain 1, 2 and 1 thirds: two of the 2³ choices of signs are as far from 0.
    assert default["against_sft"]["p"] == 0.25
    assert default["folders"] == [0, 0, 1] and table["results"] == [str(results), str(second)] and table["sft"]["ci95"] is None
    # Seed 1 of random stands in the second folder, where default has seed 2 alone: only seed 0 is common.
    assert random["seeds"] == [0, 1] and random["behind"]["seeds"] == [0]
    assert (alone["behind"]["seeds"], alone["behind"]["difference"]) == ([2], -1 / 8)
    # A seed that both folders have counts twice, each time with its own adapter.
    write(second, "default-seed0", dict.fromkeys(("last", "published"), "00000111"))
    default = summary(results, second)["last"][0]
    assert (default["seeds"], default["folders"], default["accuracies"]) == ([0, 1, 0, 2], [0, 0, 1, 1], [0.5, 0.375, 0.375, 0.625])
    assert default["against_sft"]["difference"] == pytest.approx((2 + 1 - 1 + 1) / 32)
    code, printed = run(monkeypatch, capsys, "--table", results, second, "--markdown")
    assert code is None and "SFT, mean of 2 adapters (lowest to highest): 37.5 % (25.0 to 50.0) of 8 questions" in printed
    code, _ = run(monkeypatch, capsys, "--table", results, "--table", results)
    assert code.startswith(f"error: {results} and {results} hold arms on one SFT adapter. Each folder of a table needs")
    write(second, "sft", {"sft": "00001111"}, questions="changed")
    for name in ("default-seed0", "default-seed2", "random-seed1", "alone-seed2"):
        (second / f"{name}.json").unlink()
    code, _ = run(monkeypatch, capsys, "--table", results, second)
    assert code.startswith(f"error: {second} is about other questions (hash changed, n = 8) than {results} (hash hash, n = 8)")


def test_what_is_told_of_each_seed_stands_in_the_order_of_the_seeds(tmp_path):
    write(tmp_path, "sft", {"sft": "11000000"})
    write(tmp_path, "default-seed10", dict.fromkeys(("last", "published"), "11111111"))
    write(tmp_path, "default-seed2", dict.fromkeys(("last", "published"), "11000000"))
    row = summary(tmp_path)["last"][0]
    assert (row["seeds"], row["accuracies"]) == ([2, 10], [0.25, 1.0])
    # Six gained, none lost: 2 / 2^6.
    assert row["against_sft"]["mcnemar_p"] == [1.0, 0.03125]


def test_where_no_question_changed_the_bootstrap_gives_no_interval(results):
    def shown(state: str, place: int) -> list[str]:
        return [cells(row)[place] for row in summary(results)[state]]

    # One seed: Newcombe's interval of the difference has a width, the drawn one of the errors would have none.
    write(results, "random-seed0", {"last": "10000000", "published": "11000000"})
    assert shown("published", 4)[1] == "+0.0 (-)" and re.fullmatch(r"\+0\.0 \(-\d.* to \+\d.*\)", shown("published", 3)[1])
    # Several: both are drawn.
    for seed in (0, 1):
        write(results, f"default-seed{seed}", {"last": "11000000", "published": "11000000"})
    assert (shown("last", 3)[0], shown("last", 4)[0]) == ("+0.0 (-)", "+0.0 (-)")
    assert "(-): no question changed" in markdown(summary(results))
    # An SFT model without errors has none to reduce.
    for path in results.glob("*.json"):
        write(results, path.stem, {"sft": "11111111"} if path.stem == "sft" else {"last": "11111110", "published": "11111111"})
    assert shown("last", 4) == ["-", "-"]


def test_steps_and_chosen_logp_are_those_of_the_adapter_that_is_measured(results):
    (results / "default-seed1.json").unlink()
    models = {"last": "11110000", "published": "11100000"}

    def ends(**more) -> tuple[list[str], list[str]]:
        write(results, "default-seed0", models, **more)
        table = summary(results)
        assert markdown(table)
        return tuple(cells(table[state][0])[-2:] for state in ("last", "published"))

    # Step 4 of 6 was kept: -0.48 there, -0.5 at the start.
    assert ends() == (["6", "+0.050"], ["4", "+0.020"])
    # Training was stopped and done again without guards: what those kept is told apart, or not told.
    assert ends(stopped=["fell"]) == (["6", "+0.050"], ["4", "-"])
    again = [{"start": -0.5, "last": -0.6, "kept": -0.49}]
    assert ends(stopped=["fell"], kept_chosen_logp=again) == (["6", "+0.050"], ["4", "+0.010"])
    # The best of two rounds, and the last step of the second. 2 x 0.05 to it.
    two = {"rounds": 2, "steps": 12, "kept_steps": [4, 4], "stopped": [None] * 2,
           "chosen_logp": [{"start": -0.5, "last": -0.45, "kept": -0.48}] * 2}
    assert ends(**two) == (["12", "+0.100"], ["-", "-"])
    assert ends(**two, published_is="sft")[1] == ["0", "+0.000"]
    assert ends(**two, published_is="last")[1] == ["12", "+0.100"]


def test_the_table_needs_the_files_alone_in_three_forms(results, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "--table", results, "--json")
    assert code is None and json.loads(printed) == json.loads(json.dumps(summary(results)))
    code, printed = run(monkeypatch, capsys, "--table", results, "--markdown")
    assert "**At the last step, guards off** (dev, n = 8)" in printed and printed.count("| default | 0, 1 |") == 2
    row = next(line for line in printed.splitlines() if line.startswith("| random"))
    assert row.startswith("| random | 0 | 12.5 % | -12.5 (") and "| +37.5 (" in row and row.count("|") == 14
    assert "SFT: 25.0 % (7.1 to 59.1) of 8 questions" in printed
    code, printed = run(monkeypatch, capsys, "--table", results)
    assert code is None and "At the last step, guards off" in printed and "As published" in printed


@pytest.mark.parametrize(("name", "reduction", "ends", "seeds", "fits"), [
    ("sft-on-chosen-rounds-2", 0.133, [0.106, 0.161], [1, 2, 3], True),
    ("sft-on-chosen-rounds-2", -1.123, [-1.345, -1.011], [0], False),
    ("samples-of-16-hardest-graded-plain", 0.133, [-0.106, 0.161], [0, 1, 2, 10, 11], True),
])
def test_the_terminal_shows_every_figure_whole(results, monkeypatch, capsys, name, reduction, ends, seeds, fits):
    """A table of usual figures fits 80 characters; another is wider rather than cut, since 0.00029 would become 0.000."""
    write_json(results / "random-seed0.json", json.loads((results / "random-seed0.json").read_text()) | {"arm": name})
    table = summary(results)
    for state in ("last", "published"):
        row = table[state][1]
        row["against_sft"] |= {"difference": -0.123, "ci95": [-0.234, -0.111], "p": 1e-9, "error_reduction": reduction,
                               "error_reduction_ci95": ends}
        row["behind"] |= {"difference": -0.123, "ci95": [-0.234, -0.111], "p": 0.00029}
        row |= {"seeds": seeds, "accuracies": [0.25] * len(seeds), "chosen_logp_change": -0.123}
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("preference.arm_results.summary", lambda *_, **__: table)
    code, printed = run(monkeypatch, capsys, "--table", results)
    blocks = printed.split("\n\n")
    assert code is None and len(blocks) == 7 and (max(map(len, printed.splitlines())) <= 80) == fits
    for block, (state, (part, places)) in zip(blocks, [(state, part) for state in ("last", "published") for part in PARTS], strict=False):
        title, *lines = block.splitlines()
        assert title.endswith(f", {part} (dev, n = 8)")
        heading, body = " ".join(lines).split("─", 1)[0], "\n".join(lines).rsplit("─", 1)[1]
        for place in places:
            for row in table[state]:
                words = cells(row)[place]
                # Names and seeds may go on below; of those each piece stands somewhere.
                pieces = re.findall(r".{1,8}(?:,|$)" if place == 1 else r".{1,22}(?:-|$)", words) if place < 2 else [words]
                assert all(re.search(rf"(^|\s){re.escape(piece.strip())}(\s|$)", body) for piece in pieces), (words, body)
            assert re.search(rf"(?<!\w){HEADINGS[place].split()[-1]}(?!\w)", heading)
        # Each row's figures stand in its own line, in the order of the headings.
        for row in table[state]:
            line = next(line for line in lines if line.startswith(row["arm"][:8]))
            assert " ".join(line.split()).endswith(" ".join(cells(row)[place] for place in places if place > 1))


SVG = "{http://www.w3.org/2000/svg}"


def drawn(path: Path) -> tuple[list, dict, dict, float]:
    """A drawing read back: texts as (text, x, y); bars and rings, and whiskers, by height, in % of the axis; the width."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    texts = [(mark.text, float(mark.get("x")), float(mark.get("y"))) for mark in root.iter(f"{SVG}text")]
    axis = {float(text): x for text, x, _ in texts if re.fullmatch(r"-?\d+", text)}
    one = (axis[max(axis)] - axis[0]) / max(axis)
    found: dict[float, list] = {}
    for mark in root.iter():
        kind = mark.get("class")
        if kind == "all":
            found.setdefault(float(mark.get("y")) + 8, []).append(("bar", (float(mark.get("x")) + 2 - axis[0]) / one))
        elif kind == "seed":
            found.setdefault(float(mark.get("cy")), []).append(("ring", (float(mark.get("cx")) - axis[0]) / one))
        elif kind == "whisker":
            found.setdefault(float(mark.get("y1")), []).append(
                ("whisker", (float(mark.get("x1")) - axis[0]) / one, (float(mark.get("x2")) - axis[0]) / one))
    assert root.get("aria-label")
    return texts, found, axis, float(root.get("viewBox").split()[2])


def test_the_drawing_has_marks_where_the_error_reductions_are(results, monkeypatch, capsys):
    path = results / "arms.svg"
    write_json(results / "random-seed0.json", json.loads((results / "random-seed0.json").read_text()) | {"arm": "<b>&random"})
    code, _ = run(monkeypatch, capsys, "--table", results, "--json", "--plot", path)
    assert code is None
    texts, found, axis, width = drawn(path)

    def marks(name: str, panel: int) -> list:
        height = [y for text, _, y in texts if text == name][panel]
        return sorted(tuple(round(value, 1) if value != mark[0] else value for value in mark)
                      for y, row in found.items() if abs(y - height) < 10 for mark in row)

    low, high = (round(100 * end, 1) for end in summary(results)["last"][0]["against_sft"]["error_reduction_ci95"])
    # Of SFT's 6 errors default makes 2 and 1 fewer; random makes 1 more.
    *points, whisker = marks("default (seeds 0, 1)", 0)
    assert points == [("bar", 25.0), ("ring", 16.7), ("ring", 33.3)] and whisker[1:] == pytest.approx((low, high), abs=0.11)
    assert [mark for mark in marks("<b>&random (seed 0)", 0) if mark[0] != "whisker"] == [("bar", -16.7)]
    # Default publishes SFT's once; so does random, where no question changed and there is no interval.
    assert [mark for mark in marks("default (seeds 0, 1)", 1) if mark[0] != "whisker"] == [("bar", 16.7), ("ring", 0.0), ("ring", 33.3)]
    assert marks("<b>&random (seed 0)", 1) == [("bar", 0.0)]
    # Figures stand beside; the caveat of the table below; all of it within the width, at 6 pixels a letter.
    assert cells(summary(results)["last"][0])[4] in {text for text, _, _ in texts}
    assert "was chosen on these same questions" in " ".join(text for text, _, _ in texts)
    assert all(x + 6 * len(text) <= width for text, x, _ in texts if text)
    assert all(x + 6 * len(text) < min(axis.values()) for text, x, _ in texts if "seed" in text and "(" in text and ":" not in text)
    reached = [value for row in found.values() for mark in row for value in mark[1:]]
    assert min(axis) <= min(reached) and max(reached) <= max(axis)


def test_the_drawing_of_several_adapters_and_of_one_without_errors(results, monkeypatch, capsys):
    second, path = results / "second", results / "arms.svg"
    write(second, "sft", {"sft": "11111110"})
    write(second, "default-seed2", dict.fromkeys(("last", "published"), "11111111"))
    code, _ = run(monkeypatch, capsys, "--table", results, second, "--plot", path)
    texts, found, _, _ = drawn(path)
    height = next(y for text, _, y in texts if text == "default (seeds 0, 1, 2)")
    marks = sorted(mark for y, row in found.items() if abs(y - height) < 10 for mark in row)
    # 2 of 6, 1 of 6 and 1 of 1 errors fewer: 4 of 13 together.
    assert code is None and [round(value, 1) for kind, value, *_ in marks if kind != "whisker"] == [30.8, 16.7, 33.3, 100.0]
    assert "Against SFT: each seed against the adapter" in " ".join(text for text, _, _ in texts)
    write(second, "sft", {"sft": "11111111"})
    run(monkeypatch, capsys, "--table", results, second, "--plot", path)
    texts, found, _, _ = drawn(path)
    marks = [mark[0] for y, row in found.items() if abs(y - height) < 10 for mark in row]
    assert sorted(marks) == ["bar", "ring", "ring", "whisker"], "no ring for an adapter that makes no error"
    for file in results.glob("*.json"):
        write(results, file.stem, {"sft": "11111111"} if file.stem == "sft" else {"last": "11111110", "published": "11111111"})
    code, _ = run(monkeypatch, capsys, "--table", results, "--plot", path)
    texts, found, _, _ = drawn(path)
    assert code is None and not found and [text for text, _, _ in texts].count("-") == 4


def test_a_drawing_that_cannot_be_written_is_told_first(results, monkeypatch, capsys):
    (results / "folder.svg").mkdir()
    for place in ("missing/arms.svg", "arms.png", "folder.svg"):
        code, printed = run(monkeypatch, capsys, "--table", results, "--plot", results / place)
        assert code == 2 and not printed


def test_arms_that_publish_their_last_step_are_told_once(results, monkeypatch, capsys):
    for path in results.glob("*-seed*.json"):
        write(results, path.stem, dict.fromkeys(("last", "published"), "11110000"))
    for form in ([], ["--markdown"]):
        _, printed = run(monkeypatch, capsys, "--table", results, *form)
        assert "At the last step, which is what is published" in printed and "As published" not in printed


def test_the_table_says_where_what_is_published_was_chosen_on_the_questions_it_is_measured_on(results):
    assert "What is published was chosen on these same questions" in markdown(summary(results))
    for path in results.glob("*.json"):
        write_json(path, json.loads(path.read_text()) | {"data": "test"})
    assert "(test, n = 8)" in markdown(summary(results)) and "chosen on these" not in markdown(summary(results))


def test_an_arm_alone_and_one_without_a_common_seed(results):
    for seed in (0, 1):
        (results / f"default-seed{seed}.json").unlink()
    assert "behind" not in summary(results)["last"][0]
    write(results, "default-seed5", {"last": "11000000", "published": "11000000"})
    assert summary(results)["last"][1]["behind"] is None
    assert "| - | - |" in markdown(summary(results))


def test_another_arm_to_compare_with(results, monkeypatch, capsys):
    table = summary(results, against="random")
    random, default = table["last"]
    assert (random["arm"], default["arm"], "behind" in random) == ("random", "default", False)
    # On seed 0 random has one right and default four, that one among them.
    assert (default["behind"]["seeds"], default["behind"]["difference"], default["behind"]["lost"]) == ([0], -0.375, 3)
    code, printed = run(monkeypatch, capsys, "--table", results, "--against", "random", "--markdown")
    assert code is None and "| p | random better by, points | p |" in printed and "| -37.5 (-" in printed
    code, printed = run(monkeypatch, capsys, "--table", results, "--against", "randum")
    assert str(code) == ("error: found no arm 'randum' to compare others with. These folders have default, random. "
                         "Choose one of those (--against ARM).")
    code, _ = run(monkeypatch, capsys, "--against", "random")
    assert code == 2, "nothing is trained for a table that was asked for wrongly"
    # Over two adapters, on the seeds and adapters that both have: random less default is -3/8 and -1/8.
    second = results / "second"
    write(second, "sft", {"sft": "00001111"})
    write(second, "default-seed2", dict.fromkeys(("last", "published"), "00011111"))
    write(second, "random-seed2", dict.fromkeys(("last", "published"), "00001111"))
    random, default = summary(results, second, against="random")["last"]
    assert (default["seeds"], default["behind"]["seeds"], default["behind"]["folders"]) == ([0, 1, 2], [0, 2], [0, 1])
    assert default["behind"]["difference"] == pytest.approx(-2 / 8)
    code, printed = run(monkeypatch, capsys, "--table", results, second, "--against", "random")
    assert code is None and '"random better by": points' in " ".join(printed.split())
    (results / "default-seed0.json").unlink()
    (results / "default-seed1.json").unlink()
    with pytest.raises(ValueError, match="found no arm 'default'"):
        summary(results, against="default")
    assert [row["arm"] for row in summary(results)["last"]] == ["random"]


def test_several_seeds_against_several():
    found = compared(["1100", "1000"], ["1110", "1100"])
    # Two questions gain 1/2 (in quarters 2, 2): two of four choices of signs are as far from 0.
    assert (found["difference"], found["p"], found["test"]) == (pytest.approx(0.25), 0.5, "paired permutation (sign flip)")
    assert found["mcnemar_p"] == [1.0, 1.0]


def test_files_about_other_questions_are_not_mixed(results):
    write(results, "other-seed0", {"last": "11000000", "published": "11000000"}, questions="changed")
    with pytest.raises(ValueError, match="other-seed0.json is about other questions") as error:
        read_results(results)
    assert "(hash changed, n = 8) than sft.json (hash hash, n = 8)" in str(error.value) and "Measure again" in str(error.value)
    write(results, "other-seed0", {"last": "110", "published": "110"})
    with pytest.raises(ValueError, match="is about other questions"):
        read_results(results)


@pytest.mark.parametrize("file", ["sft", "random-seed0"])
@pytest.mark.parametrize(("content", "found"), [
    (None, "no JSON, perhaps cut off"), ([], "no map"), (3, "no map"), ({"models": []}, "no arm, no seed, no data, no n, ")])
def test_a_result_that_is_cut_off_or_of_another_form_is_named(results, monkeypatch, capsys, file, content, found):
    path = results / f"{file}.json"
    path.write_text(path.read_text()[:40] if content is None else json.dumps(content))
    code, _ = run(monkeypatch, capsys, "--table", results)
    assert code.startswith(f"error: {path} is not a result of an arm ({found}") and "delete it to have it made again" in code


def test_a_result_without_a_model_or_its_measures_is_named(results):
    write(results, "random-seed0", {"last": "10000000"}, published_is="sft")
    with pytest.raises(ValueError, match=r"random-seed0.json is not a result of an arm \(no models.published\). Allowed"):
        read_results(results)
    result = json.loads((results / "default-seed0.json").read_text())
    del result["models"]["last"]["valid_sql"], result["steps"]
    write_json(results / "default-seed0.json", result)
    with pytest.raises(ValueError, match=r"default-seed0.json is not a result of an arm .no steps, no models.last.valid_sql\)"):
        read_results(results)


def test_two_files_of_one_arm_and_seed_are_named(results):
    shutil.copy(results / "random-seed0.json", results / "random-seed0-copy.json")
    with pytest.raises(ValueError, match="seed0-copy.json and .*random-seed0.json both hold arm random, seed 0. Allowed"):
        read_results(results)


def test_what_is_no_result_and_a_folder_without_sft_are_named(results):
    (results / "notes.json").write_text("[]")
    with pytest.raises(ValueError, match="notes.json is not a result of an arm .no map.. Allowed are"):
        read_results(results)
    with pytest.raises(ValueError, match="none has no sft.json .found: no such folder.. Every arm is compared"):
        read_results(results / "none")


def test_help_is_instant():
    command = [sys.executable, "-X", "importtime", "preference/ablate.py", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ") and "torch" not in done.stderr and "pyarrow" not in done.stderr


def test_every_committed_set_of_results_makes_a_table():
    for file in (PROJECT / "tests" / "results").glob("*/sft.json"):
        assert summary(file.parent)["last"]

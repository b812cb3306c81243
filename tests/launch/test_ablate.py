"""Control arms through their one command and the stages' own: two arms on one SFT adapter, their table, nothing done twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.launch
PROJECT = Path(__file__).parents[2]
ARMS = {"default": {"seeds": [0], "settings": {}}, "flipped": {"seeds": [0], "settings": {"pairs.control": "flipped"}}}
# Guards that watch every other step, and let training go on to the last.
GUARDED = {"train.steps": 4, "guards.every_steps": 2, "guards.questions": 6, "guards.pairs": 4, "guards.stop": False}


@pytest.fixture(scope="module")
def ablated(finished_run, dpo_settings, tmp_path_factory) -> dict:
    """Two arms that go on after sampling, then asked for again, then their table; with what was printed."""
    folder = tmp_path_factory.mktemp("ablated")
    (folder / "runs/default-seed0/round-1").mkdir(parents=True)
    for file in [*finished_run.glob("round-1/candidates.*"), *finished_run.glob("round-1/verdicts.*")]:
        shutil.copy2(file, folder / "runs/default-seed0/round-1")
    settings = {key: YAML(typ="safe").load(value) for key, value in (setting.split("=") for setting in dpo_settings)} | GUARDED
    YAML().dump({"config": str(PROJECT / "configs" / "dpo.yaml"), "run": str(finished_run), "runs": str(folder / "runs"),
                 "results": str(folder / "results"), "settings": settings,
                 "measure": {"data": "test", "columns": {}, "limit": None}, "arms": ARMS}, folder / "ablation.yaml")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def ablate(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "preference/ablate.py", *arguments], cwd=PROJECT, env=environment,
                              capture_output=True, text=True)
        logs = "".join(log.read_text()[-2000:].replace("\r", "\n") for log in sorted(folder.glob("runs/*/ablate.log")))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout

    def files(place: Path) -> dict:
        return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}

    shared = files(finished_run)
    configuration = ("--config", str(folder / "ablation.yaml"))
    first = ablate(*configuration)
    results = files(folder / "results")
    again = ablate(*configuration)
    assert files(finished_run) == shared and files(folder / "results") == results
    return {"folder": folder, "first": first, "again": again, "table": ablate("--table", str(folder / "results"), "--markdown")}


def test_arms_share_samples_and_steps_and_nothing_is_done_twice(ablated):
    folder = ablated["folder"]
    found = {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}
    assert found.keys() == {"sft", "default-seed0", "flipped-seed0"}
    default, flipped = found["default-seed0"], found["flipped-seed0"]
    assert default["pairs"] == flipped["pairs"] and default["steps"] == flipped["steps"] == 4
    assert flipped["cost"]["samples_of"] == "default-seed0" and default["questions"] == flipped["questions"]
    rows = {name: pq.read_table(folder / f"runs/{name}-seed0/round-1/pairs.parquet").to_pylist() for name in ARMS}
    assert ([(row["chosen"], row["rejected"]) for row in rows["default"]]
            == [(row["rejected"], row["chosen"]) for row in rows["flipped"]])
    assert all(len(model["right"]) == result["n"] == 6 for result in found.values() for model in result["models"].values())
    assert "2 runs, 0 of them" in ablated["first"] and "2 runs, 2 of them have their result" in ablated["again"]


def test_the_last_step_is_measured_beside_what_the_guards_publish(ablated):
    for name in ARMS:
        result = json.loads((ablated["folder"] / f"results/{name}-seed0.json").read_text())
        assert [row["step"] for row in result["guards"][0]] == [0, 2, 4] and result["stopped"] == [None]
        place = ablated["folder"] / f"runs/{name}-seed0/round-1/dpo"
        assert (place / "last").exists() == (result["kept_steps"] != [4])
        assert not (ablated["folder"] / f"runs/{name}-seed0/last").exists(), "the same was trained twice"
        assert result["chosen_logp"][0]["last"] == result["guards"][0][-1]["chosen_logp"]
        assert result["chosen_logp"][0]["start"] == pytest.approx(result["guards"][0][0]["chosen_logp"])
    assert "| flipped | 0 |" in ablated["table"] and "| default | 0 |" in ablated["table"]

"""People's labels on a real run: applied, trained on with their share of noise, and taken along when pairs are built anew."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from preference.inspection.contents import hash_of
from preference.inspection.labels import LabelFile
from sft.artefacts import read_parquet

PROJECT = Path(__file__).parents[2]


@pytest.mark.launch
def test_labels_reach_the_pairs_the_loss_and_the_next_build(start, copy_run, dpo_settings):
    run = copy_run("train")
    path = run / "round-1" / "pairs.parquet"
    before = {pair["pair_id"]: pair for pair in read_parquet(path)}
    words = {name: "prefer_rejected" if number == 0 else "tie" if number == 1 else "prefer_chosen"
             for number, name in enumerate(before)}
    file = LabelFile(run / "labels.sqlite")
    for name, word in words.items():
        file.add(name, "ada", word, content_hash=hash_of(before[name]))
    file.close()
    subprocess.run([sys.executable, "-m", "preference.inspection.command", "apply", str(run)], cwd=PROJECT, check=True)
    flipped, tied = list(before)[:2]
    after = {pair["pair_id"]: pair for pair in read_parquet(path)}
    assert after[flipped]["chosen"] == before[flipped]["rejected"] and tied not in after and len(after) == len(before) - 1

    # The step stays complete, so the run goes on with what people made of it.
    noisy = [*dpo_settings, "train.label_noise=from-labels", "train.loss_type=[robust]", "train.loss_weights=[1.0]"]
    output = start("preference/dpo.py", run, noisy).finish()
    share = 1 / len(after)
    assert "pairs.parquet is complete for these settings" in output
    assert f"label noise: people overturned 1 of {len(after)} pairs" in output and f"label_smoothing {share:.4f}" in output
    inputs = json.loads((run / "round-1" / "dpo" / "complete.json").read_text())["inputs"]
    assert inputs["label_smoothing"] == pytest.approx(share)

    labels = (run / "labels.sqlite").read_bytes()
    output = start("preference/dpo.py", run, [*dpo_settings, "pairs.strategy=farthest"], arguments=["--only", "pairs", "--overwrite"]
                   ).finish()
    assert "people's word goes above the executor's" in output
    anew = {pair["pair_id"]: pair for pair in read_parquet(path)}
    assert tied not in anew and (run / "labels.sqlite").read_bytes() == labels
    for name in anew.keys() & words.keys():
        assert anew[name]["person_label"] == words[name]
    assert (run / "round-1" / "pairs.parquet.before-labels-1").exists()

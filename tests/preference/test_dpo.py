"""The steps of a round: what each is made for, and what is made anew."""

from pathlib import Path

import pytest

from preference.dpo import run_round
from preference.preparation import Prepared
from preference.sampling import CANDIDATES_SCHEMA, VERDICTS_SCHEMA
from sft.artefacts import mark_complete, write_json, write_parquet
from sft.configuration import DpoConfig, read_configuration

CONFIGURATION = Path(__file__).parents[2] / "configs" / "dpo.yaml"


class Asked(Exception):
    """Raised in the place of a step's work, with the inputs that it is made for."""


@pytest.fixture
def stage(tmp_path):
    """A finished stage one with four questions, whose weights nobody loads."""
    adapter = tmp_path / "sft"
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text("{}")
    write_json(adapter / "provenance.json", {"base_fingerprint": "f"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    examples = [{"example_id": name, "context": "CREATE TABLE pet (name TEXT)"} for name in "abcd"]
    return Prepared(tmp_path, {"trust_remote_code": False}, None, "compact", 256, "p", examples)


@pytest.fixture
def inputs_of_samples(stage, monkeypatch):
    """A function that gives the inputs with which a round's sample step is begun, under --set values."""
    monkeypatch.setattr("sft.checkpoint.load_for_inference", lambda *_, **__: (None, None, None))

    def sample(target, inputs, *_, **__):
        raise Asked(inputs)

    monkeypatch.setattr("preference.sampling.sample", sample)

    def inputs(*settings, number=1):
        config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", *settings])
        with pytest.raises(Asked) as asked:
            run_round(config, stage, number, ("sample",), False)
        return asked.value.args[0]

    return inputs


def test_samples_depend_on_the_precision_they_are_drawn_in(inputs_of_samples):
    found = {precision: inputs_of_samples(f"train.precision={precision}") for precision in ("fp32", "bf16")}
    assert found["fp32"] != found["bf16"]
    assert found["bf16"] == found["fp32"] | {"precision": "bf16"}


def test_overwrite_keeps_what_is_equal_and_says_how_to_make_it_anew(stage, capsys):
    place = stage.folder / "round-1"
    for name, schema in (("candidates", CANDIDATES_SCHEMA), ("verdicts", VERDICTS_SCHEMA)):
        write_parquet(place / f"{name}.parquet", [], schema)
        mark_complete(place / f"{name}.parquet", {}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"])
    pairs = place / "pairs.parquet"

    def made(steps, overwrite) -> bool:
        before = pairs.stat().st_mtime_ns if pairs.exists() else None
        run_round(config, stage, 1, steps, overwrite)
        return pairs.stat().st_mtime_ns != before

    assert made(("pairs",), False) and not made(("pairs",), False)
    assert f"pairs: {pairs} is complete for these settings\n" in capsys.readouterr().out
    assert not made(("pairs",), True)
    assert f"pairs: {pairs} is complete for these settings; to make it anew all the same, delete it\n" in capsys.readouterr().out
    pairs.unlink()
    assert made(("pairs",), False) and pairs.with_suffix(".complete.json").exists()

"""Benchmarks say truly what they measured."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(("options", "tokens"), [((), 96), (("--quick",), 40)])
def test_the_sampling_benchmark_records_its_own_token_limit(tmp_path, monkeypatch, options, tokens):
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    sampling = importlib.import_module("sampling")
    model = SimpleNamespace(dtype="float32", device="cpu")
    monkeypatch.setattr("sft.ranks.prepare_environment", lambda distributed: None)
    monkeypatch.setattr("sft.ranks.start", lambda zero: None)
    monkeypatch.setattr("sft.checkpoint.load_for_inference", lambda *_, **__: (model, None, None))
    monkeypatch.setattr(sampling, "compare", lambda *_: {})
    monkeypatch.setattr(sampling, "show", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["sampling.py", *options, "--cases", "short", "--json", str(tmp_path / "found.json")])
    sampling.main()
    assert json.loads((tmp_path / "found.json").read_text())["settings"]["max_new_tokens"] == tokens

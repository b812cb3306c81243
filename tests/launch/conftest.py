"""A run folder in which a tiny model has really learned, and the ways to start stages on it as a user does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ACCELERATE = Path(sys.executable).with_name("accelerate")
# Longest time that one start may take; an hour-long hang would say less than a failure.
LIMIT_S = 300

# Table, a text column with its values, a number column: eight questions are asked of each.
TABLES = [
    ("boat", "harbor", ("Faro", "Bari"), "length"),
    ("singer", "country", ("Peru", "Mali"), "age"),
    ("bakery", "city", ("Oslo", "Graz"), "rating"),
    ("planet", "star", ("Vega", "Rigel"), "mass"),
    ("teacher", "subject", ("Latin", "Music"), "salary"),
    ("bridge", "river", ("Po", "Inn"), "width"),
]


def questions() -> list[dict]:
    """Rows in the shape of sql-create-context: eight simple questions on each of six tables."""
    rows = []
    for table, column, (first, second), number in TABLES:
        context = f"CREATE TABLE {table} (name VARCHAR, {column} VARCHAR, {number} INTEGER)"
        asked = {
            f"Name every {table} of {first}": f"SELECT name FROM {table} WHERE {column} = '{first}'",
            f"Name every {table} of {second}": f"SELECT name FROM {table} WHERE {column} = '{second}'",
            f"Count every {table} of {first}": f"SELECT COUNT(*) FROM {table} WHERE {column} = '{first}'",
            f"Give the {number} of each {table}": f"SELECT {number} FROM {table}",
            f"Name each {table} over 5 {number}": f"SELECT name FROM {table} WHERE {number} > 5",
            f"Name each {table} under 7 {number}": f"SELECT name FROM {table} WHERE {number} < 7",
            f"What is the largest {number} of a {table}": f"SELECT MAX({number}) FROM {table}",
            f"List each {column} of a {table} once": f"SELECT DISTINCT {column} FROM {table}",
        }
        rows += [{"question": question, "context": context, "answer": gold} for question, gold in asked.items()]
    return rows


def write_lines(path: Path, rows: list[dict]) -> Path:
    """A JSONL file of the rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl (48 rows), dev.jsonl and test.jsonl (6 rows each, asked in other words)."""
    folder = tmp_path_factory.mktemp("data_files")
    rows = questions()
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "dev.jsonl", [row | {"question": row["question"] + "?"} for row in rows[::8]])
    write_lines(folder / "test.jsonl", [row | {"question": row["question"] + "!"} for row in rows[3::8]])
    return folder


@pytest.fixture(scope="session")
def sft_settings(tiny_model: Path, data_files: Path) -> list[str]:
    """--set values of stage one that make the tiny model half right in a few seconds."""
    return [
        f"model={tiny_model}", f"data.source={data_files / 'train.jsonl'}", f"data.dev={data_files / 'dev.jsonl'}",
        f"data.test={data_files / 'test.jsonl'}", "train.precision=fp32", "train.epochs=70", "train.learning_rate=2e-2",
        "train.lora_rank=32", "train.lora_alpha=64", "train.global_batch_size=16", "train.micro_batch_size=16",
        "evaluate.max_new_tokens=40", "judge.workers=1",
    ]


# --set values of stage two: six shards to sample and judge, and a handful of steps with a checkpoint after each.
DPO_SETTINGS = [
    "train.precision=fp32", "train.zero_stage=0", "train.global_batch_size=8", "train.micro_batch_size=2",
    "train.save_steps=1", "train.learning_rate=1e-3", "sample.samples=8", "sample.shard_size=8",
    "sample.max_new_tokens=40", "evaluate.max_new_tokens=40", "judge.workers=1",
]

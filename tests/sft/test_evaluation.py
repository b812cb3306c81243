"""Greedy execution accuracy: answers in their order, verdicts from a real SQLite file, and shares by hand."""

import sqlite3
from contextlib import closing

import pytest
import torch

from sft.checkpoint import load_base, load_tokenizer
from sft.evaluation import adapter_in_base_dtype, answer, evaluate, judge_answers, judge_tasks, measures
from sft.prompt import prompt_ids, read_completion, render
from sft.sampler import generate
from sft.training import lora_model

CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
JUDGE = {"databases": "given", "workers": 1, "seed": 0}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pets.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(CONTEXT)
        connection.executemany("INSERT INTO pet VALUES (?, ?)", [("Ada", 3), ("Bo", 5), ("Cy", 5), ("Di", 9)])
        connection.commit()
    return str(path)


@pytest.fixture
def examples(database):
    gold = {
        "How many pets?": "SELECT COUNT(*) FROM pet",
        "Name the pets older than four.": "SELECT name FROM pet WHERE age > 4",
        "Who is the king of Norway, and since when does he reign?": None,
        "Name the pets of age five.": "SELECT name FROM pet WHERE age = 5",
    }
    return [
        {
            "example_id": f"e{number}",
            "question": question,
            "context": CONTEXT,
            "gold_sql": sql,
            "database": database,
            "evidence": None,
            "answerable": sql is not None,
            "kind": ["simple"],
        }
        for number, (question, sql) in enumerate(gold.items())
    ]


def answered(sql, *, abstained=False, ended=True, tokens=5):
    return {"completion": sql or "", "sql": sql, "abstained": abstained, "ended_with_eos": ended, "token_count": tokens}


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """(model, tokenizer); attention is made strong enough that different prompts get different answers."""
    model = load_base(tiny_model, precision="fp32")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    return model, load_tokenizer(tiny_model)


# --------------------------------------------------------------------- answers


def test_answers_are_greedy_and_stand_in_the_order_of_the_examples(tiny, examples):
    model, tokenizer = tiny
    answers = answer(model, tokenizer, examples, schema_style="compact", max_new_tokens=8, batch_size=2)
    for row, example in zip(answers, examples, strict=True):
        prompt = prompt_ids(tokenizer, render(example, "compact"))
        [[completion]] = generate(model, tokenizer, [prompt], ["x"], max_new_tokens=8)
        sql, abstained = read_completion(completion.text)
        assert row == {
            "completion": completion.text,
            "sql": sql,
            "abstained": abstained,
            "ended_with_eos": completion.ended_with_eos,
            "token_count": completion.token_count,
        }
    assert len({row["completion"] for row in answers}) > 1


def test_answering_leaves_the_model_as_it_was(tiny_model, tiny, examples):
    """In training between two evaluations: mode and the dtype of the adapter come back."""
    base = load_base(tiny_model, precision="bf16")
    model = lora_model(base, rank=4, alpha=8, dropout=0.5, gradient_checkpointing=False, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen = set()

    def watch(module, arguments):
        seen.add((module.training, *(parameter.dtype for parameter in module.parameters())))

    layer = next(module for name, module in model.named_modules() if name.endswith("lora_A.default"))
    layer.register_forward_pre_hook(watch)
    model.train()
    answer(model, tiny[1], examples[:1], schema_style="compact", max_new_tokens=2, batch_size=1)
    assert seen == {(False, torch.bfloat16)}
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype and torch.equal(parameter, before[name]), name
    assert {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name} == {torch.float32}


# -------------------------------------------------------------------- verdicts


def test_a_task_names_the_file_or_else_the_schema(examples, database):
    tasks = judge_tasks([examples[0], examples[2], {**examples[1], "database": None}], [["SELECT 1"], [None], [""]])
    assert tasks == [
        {"id": "e0", "gold": "SELECT COUNT(*) FROM pet", "candidates": ["SELECT 1"], "database": database},
        {"id": "e2", "gold": None, "candidates": [None], "database": database},
        {"id": "e1", "gold": "SELECT name FROM pet WHERE age > 4", "candidates": [""], "context": CONTEXT},
    ]


def test_verdicts_by_model_for_the_questions_with_an_answer(examples):
    examples[3]["gold_sql"] = "SELECT nothing FROM pet"
    answers = {
        "base": [answered("SELECT COUNT(name) FROM pet"), answered(None), answered("SELECT 1"), answered("SELECT 1")],
        "sft": [
            answered("SELECT 4"),
            answered("SELECT name FROM pet WHERE 5 <= age"),
            answered(None, abstained=True),
            answered("SELECT nothing FROM pet"),
        ],
        "dpo": [
            answered("SELECT count(*) FROM pets"),
            answered("SELECT name, age FROM pet"),
            answered("SELECT 1"),
            answered("SELECT 1"),
        ],
    }
    rows = judge_answers(examples, answers, **JUDGE)
    # e2 has no answer and e3 no sound gold: the same two questions are left for every model.
    assert {name: [row["example_id"] for row in found] for name, found in rows.items()} == dict.fromkeys(
        answers, ["e0", "e1"]
    )
    assert {name: [row["verdict"] for row in found] for name, found in rows.items()} == {
        "base": ["correct", "wrong"],
        "sft": ["correct", "correct"],
        "dpo": ["wrong", "wrong"],
    }
    assert [row["reason"] for row in rows["dpo"]] == ["sql_error", "columns"] and rows["base"][1][
        "reason"
    ] == "sql_error"
    assert rows["sft"][1] | {"trace": None} == {
        "example_id": "e1",
        "question": "Name the pets older than four.",
        "context": CONTEXT,
        "kind": ["simple"],
        "gold_sql": "SELECT name FROM pet WHERE age > 4",
        "verdict": "correct",
        "reason": "equal",
        "trace": None,
        **answered("SELECT name FROM pet WHERE 5 <= age"),
    }


def test_an_abstention_where_there_is_an_answer_is_wrong_and_says_so(examples):
    rows = judge_answers(examples[:1], {"m": [answered(None, abstained=True)]}, **JUDGE)
    assert [(row["verdict"], row["reason"]) for row in rows["m"]] == [("wrong", "abstained")]


# -------------------------------------------------------------------- measures


def test_shares_by_hand():
    def row(verdict, reason, ended=True, tokens=10):
        # An answer repeats one that got the same verdict for the same reason; white space does not count.
        return {"verdict": verdict, "reason": reason, "ended_with_eos": ended, "token_count": tokens,
                "completion": f"{verdict} {reason}" + " " * (tokens // 20)}

    rows = [
        row("correct", "equal"),
        row("correct", "equal", tokens=20),
        row("unclear", "near"),
        row("wrong", "columns"),
        row("wrong", "rows"),
        row("wrong", "order"),
        row("wrong", "sql_error", ended=False, tokens=96),
        row("wrong", "refused"),
        row("wrong", "timeout"),
        row("wrong", "duplicates"),
    ]
    assert measures(rows) == {
        "n": 10,
        "execution_accuracy": 0.2,
        "valid_sql": 0.7,
        "unclear": 0.1,
        "ended_with_eos": 0.9,
        "mean_tokens": 19.6,
        "duplicates": 0.1,
    }


def test_no_questions_are_zero_and_not_an_error():
    assert measures([]) == dict.fromkeys(
        ["n", "execution_accuracy", "valid_sql", "unclear", "ended_with_eos", "mean_tokens", "duplicates"], 0
    )


def test_evaluate_answers_and_judges(tiny, examples, monkeypatch):
    """The tiny model speaks no SQL, so one of its completions is replaced by a query that is right."""
    settings = {"schema_style": "compact", "max_new_tokens": 6, "batch_size": 4, "description": "tiny", **JUDGE}
    found = evaluate(*tiny, examples, **settings)
    assert (found["n"], found["execution_accuracy"], found["valid_sql"]) == (3, 0, 0) and 1 <= found["mean_tokens"] <= 6
    import sft.evaluation

    monkeypatch.setattr(sft.evaluation, "read_completion", lambda text: ("SELECT COUNT(*) FROM pet", False))
    found = evaluate(*tiny, examples, **settings)
    assert (found["execution_accuracy"], found["valid_sql"]) == (1 / 3, 1)


def test_an_evaluation_in_bf16_leaves_the_adapter_as_it_was_and_its_gradient_hooks_with_it(tiny_model):
    """Ranks add up gradients in hooks on the accumulators that parameters have when training begins."""
    model = lora_model(load_base(tiny_model, precision="bf16"), rank=2, alpha=4, dropout=0.0, gradient_checkpointing=False, seed=0)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters() if "lora_" in name}
    assert {parameter.dtype for parameter, _ in before.values()} == {torch.float32}
    seen, accumulators = [], []
    for name, (parameter, _) in before.items():
        accumulators.append(parameter.view_as(parameter).grad_fn.next_functions[0][0])
        accumulators[-1].register_hook(lambda *_, name=name: seen.append(name))
    with adapter_in_base_dtype(model):
        assert {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
    after = dict(model.named_parameters())
    for name, (parameter, numbers) in before.items():
        assert after[name] is parameter and parameter.requires_grad and torch.equal(parameter, numbers)
    sum(parameter.sum() for parameter, _ in before.values()).backward()
    assert sorted(seen) == sorted(before)

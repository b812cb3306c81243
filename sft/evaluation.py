"""Greedy execution accuracy: a model answers questions, the judge executes the answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
from tqdm import tqdm

from reward.cache import default_folder
from reward.judge import Judge
from sft import ranks
from sft.prompt import prompt_ids, read_completion, render
from sft.sampler import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWERS_SCHEMA = pa.schema([("completion", pa.string()), ("sql", pa.string()), ("abstained", pa.bool_()),
                            ("ended_with_eos", pa.bool_()), ("token_count", pa.int64())])
# Reasons for `wrong` that a query can only get after it ran.
RAN = {"columns", "rows", "duplicates", "order"}


@contextmanager
def adapter_in_base_dtype(model: PreTrainedModel) -> Iterator[None]:
    """Hold LoRA weights in the base model's dtype for a while: what autocast would do again for every token.

    Other parameters stand in for them: one that changes its own dtype loses its gradient accumulator (torch 2.13,
    `VariableHooks::set_data`), and with it the hooks by which ranks add up gradients in the training that goes on.
    """
    import torch

    changed = [(module, name, parameter) for path, module in model.named_modules() if "lora_" in path
               for name, parameter in module.named_parameters(recurse=False) if parameter.dtype != model.dtype]
    for module, name, parameter in changed:
        setattr(module, name, torch.nn.Parameter(parameter.detach().to(model.dtype), requires_grad=False))
    try:
        yield
    finally:
        for module, name, parameter in changed:
            setattr(module, name, parameter)


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[dict], *, schema_style: str,
           max_new_tokens: int, batch_size: int, description: str = "answering") -> list[dict]:
    """Greedy answers to `examples`, in their order, on every rank; the ranks share the work.

    Each is {completion, sql (None where there is none), abstained, ended_with_eos, token_count}.
    """
    # Neighbours in length go to the same batch; ranks take turns so that each gets its share of long prompts.
    prompts = [prompt_ids(tokenizer, render(example, schema_style)) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: (-len(prompts[index]), index))
    mine = order[ranks.rank() :: ranks.world_size()]
    training = model.training
    model.eval()
    with (tqdm(total=len(mine), desc=description, unit="question", disable=not ranks.is_main()) as bar,
          adapter_in_base_dtype(model)):
        found = generate(model, tokenizer, [prompts[index] for index in mine],
                         [examples[index]["example_id"] for index in mine], max_new_tokens=max_new_tokens,
                         batch_size=batch_size, progress=bar.update)
    model.train(training)
    everyone = [pair for part in ranks.gather(list(zip(mine, (row[0] for row in found), strict=True))) for pair in part]
    answers: list[dict] = [{} for _ in examples]
    for index, completion in everyone:
        sql, abstained = read_completion(completion.text)
        answers[index] = {"completion": completion.text, "sql": sql, "abstained": abstained,
                          "ended_with_eos": completion.ended_with_eos, "token_count": completion.token_count}
    return answers


def candidate(row: dict) -> str | None:
    """What the judge is asked about a completion: its query, an empty one where there is none, None if it abstained."""
    return None if row["abstained"] else row["sql"] or ""


def judge_tasks(examples: list[dict], candidates: list[list[str | None]]) -> list[dict]:
    """Task lines for the judge: `candidates` holds each example's queries, None where the model abstained."""
    return [
        {"id": example["example_id"], "gold": example["gold_sql"] if example["answerable"] else None,
         "candidates": queries,
         **({"database": example["database"]} if example["database"] else {"context": example["context"]})}
        for example, queries in zip(examples, candidates, strict=True)
    ]


def judge_answers(examples: list[dict], answers: dict[str, list[dict]], *, databases: str, workers: int,
                  seed: int) -> dict[str, list[dict]]:
    """Judge every model's answers; {model: rows}, rows for the questions whose gold is ok, the same for all models.

    Each row holds the example's id, question, context, gold_sql and kind, the answer, and its verdict, reason, trace.
    Questions that cannot be answered are left out: they are scored apart (`abstention`).
    """
    asked = [index for index, example in enumerate(examples) if example["answerable"]]
    tasks = judge_tasks([examples[index] for index in asked],
                        [[candidate(answers[name][index]) for name in answers] for index in asked])
    rows: dict[str, list[dict]] = {name: [] for name in answers}
    with Judge(databases=databases, workers=workers or ranks.threads_per_rank(), seed=seed,
               cache=default_folder()) as judge:
        for index, line in zip(asked, judge.stream(tasks, progress=ranks.is_main()), strict=True):
            if line["gold"]["status"] != "ok":
                continue
            kept = {key: examples[index][key] for key in ("example_id", "question", "context", "gold_sql", "kind")}
            for name, verdict in zip(answers, line["verdicts"], strict=True):
                rows[name].append({**kept, **answers[name][index], **verdict})
    return rows


def measures(rows: list[dict]) -> dict[str, float]:
    """Shares (0 to 1) over judged rows: execution_accuracy, valid_sql, unclear, ended_with_eos, duplicates (answers whose text
    repeats that of an earlier question); mean_tokens; n.
    """
    count = max(1, len(rows))

    def share(test) -> float:
        return sum(map(test, rows)) / count

    return {
        "n": len(rows),
        "execution_accuracy": share(lambda row: row["verdict"] == "correct"),
        "valid_sql": share(lambda row: row["verdict"] in ("correct", "unclear") or row["reason"] in RAN),
        "unclear": share(lambda row: row["verdict"] == "unclear"),
        "ended_with_eos": share(lambda row: row["ended_with_eos"]),
        "mean_tokens": share(lambda row: row["token_count"]),
        "duplicates": (len(rows) - len({row["completion"].strip() for row in rows})) / count,
    }


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[dict], *, schema_style: str,
             max_new_tokens: int, batch_size: int, databases: str, workers: int, seed: int,
             description: str) -> dict[str, float]:
    """`measures` of a model's greedy answers, on every rank; rank 0 judges."""
    answers = answer(model, tokenizer, examples, schema_style=schema_style, max_new_tokens=max_new_tokens,
                     batch_size=batch_size, description=description)
    found = None
    if ranks.is_main():
        rows = judge_answers(examples, {"model": answers}, databases=databases, workers=workers, seed=seed)["model"]
        found = measures(rows)
    return ranks.gather(found)[0]

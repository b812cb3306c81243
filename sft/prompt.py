"""The one function that renders a prompt, and the token ids that every stage trains on and samples from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sft.artefacts import content_hash
from sft.ddl import compact_schema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Answer with one SQLite query."
# The completion of a question that the schema cannot answer.
UNANSWERABLE = "UNANSWERABLE"

# At the start of a line, or after a colon in one that begins with no comment.
_SELECT = re.compile(r"(?:^|\n)(?:(?!\s*(?:--|/\*))[^\n]*?:)??\s*((?:SELECT|WITH)\b.*)", re.IGNORECASE | re.DOTALL)
_STATEMENT = re.compile(
    r"(SELECT|WITH|VALUES|ALTER|ANALYZE|ATTACH|BEGIN|CREATE|DELETE|DETACH|DROP|INSERT|PRAGMA|REPLACE|UPDATE|VACUUM)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```(?:(?!(?:SELECT|WITH|VALUES)\b)\w+\n|(?:sql|sqlite3?)\b)?(.*?)(?:```|$)", re.IGNORECASE | re.DOTALL)


def render(example: dict, schema_style: str) -> list[dict[str, str]]:
    """The prompt of an example, as chat messages: the only place where a prompt is worded.

    Used by SFT, sampling, DPO, evaluation and inference. `example` needs `question` and `context` (DDL), and may have
    `evidence`. `schema_style`: `ddl` (the CREATE TABLE text as it is) or `compact` (`compact_schema`).
    """
    schema = compact_schema(example["context"]) if schema_style == "compact" else example["context"]
    evidence = f"\nHint: {example['evidence']}" if example.get("evidence") else ""
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"{schema}{evidence}\nQuestion: {example['question']}"},
    ]


def prompt_hash(tokenizer: PreTrainedTokenizerBase, schema_style: str, max_prompt_tokens: int) -> str:
    """What identifies a prompt format: renderer, schema style, token budget and the tokenizer's chat template.

    Saved with every artefact; a stage that meets another hash refuses (`check_prompt_hash`).
    """
    probe = {
        "question": "q?",
        "evidence": "e",
        "context": 'CREATE TABLE a (x INT PRIMARY KEY, "y z" TEXT); CREATE TABLE b (v INT REFERENCES a(x), w DEC(2, 1), '
                   "FOREIGN KEY (w) REFERENCES a(x))",
    }
    bare = {**probe, "evidence": None, "context": "not DDL"}
    rendered = [render(example, style) for example in (probe, bare) for style in ("ddl", "compact")]
    return content_hash([rendered, schema_style, max_prompt_tokens, tokenizer.chat_template, tokenizer.eos_token])[:16]


def check_prompt_hash(found: str, wanted: str, where: str) -> None:
    """Raise ValueError where an artefact was made with another prompt format than the one now in use."""
    if found != wanted:
        raise ValueError(
            f"{where} was made with prompt format {found}, this run uses {wanted} (renderer, prompt.schema_style, "
            "prompt.max_prompt_tokens or chat template differ). A model must be asked in the words it was trained on: "
            "use the settings of that run, or make the artefact anew in another run folder."
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a rendered prompt, up to and including the marker that opens the assistant's turn.

    A chat template that refuses a system message gets its text at the head of the user's.
    """
    from jinja2.exceptions import TemplateError

    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    except TemplateError:
        merged = [{"role": "user", "content": "\n".join(message["content"] for message in messages)}]
        encoded = tokenizer.apply_chat_template(merged, add_generation_prompt=True, tokenize=True)
    return list(encoded["input_ids"])


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a completion, always ended by exactly one EOS; special tokens' texts within it are plain text.

    Example: `SELECT 1` -> ids of "SELECT", " 1", then `<|im_end|>`.
    """
    while tokenizer.eos_token and text.endswith(tokenizer.eos_token):
        text = text.removesuffix(tokenizer.eos_token)
    return [*tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]


def target_text(example: dict) -> str:
    """What the model should answer: the normalised gold query, or the word for a question without an answer."""
    return example["gold_sql"] if example["answerable"] else UNANSWERABLE


def read_completion(completion: str) -> tuple[str | None, bool]:
    """The query in a completion, and whether the model abstained: (sql or None, abstained).

    A fenced block counts as the query; otherwise the text from the first line that starts with SELECT or WITH, or the
    whole text where there is none (the judge then says what is wrong with it). Nothing is repaired: a text that starts
    with another statement is taken whole too, so that `DROP TABLE t;` before a query is not overlooked.
    """
    text = completion.strip()
    if text.rstrip(".").upper() == UNANSWERABLE:
        return None, True
    if _STATEMENT.match(text):
        text = text.split("```")[0]
    elif fence := _FENCE.search(text):
        text = fence.group(1).strip()
    elif select := _SELECT.search(text):
        text = select.group(1).strip()
    text = text.rstrip().removesuffix(";").rstrip()
    return (text or None), False

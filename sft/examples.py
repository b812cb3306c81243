"""The examples of a run: read, split, audited and written as Parquet, with every row that fails kept in quarantine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from reward.audit import audit
from sft.artefacts import atomic_path, is_complete, mark_complete, mark_path, read_parquet, write_parquet
from sft.distractors import add_distractors
from sft.sources import Row
from sft.splits import PREFERENCE, SPLITS, gather, gather_questions, hold_out, identity, separate

EXAMPLES_SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "source": pa.string(),
        "question": pa.string(),
        "context": pa.string(),  # DDL
        "gold": pa.string(),  # as found; null: the schema cannot answer the question
        "gold_sql": pa.string(),  # audited, literals in single quotes
        "database": pa.string(),  # path of its SQLite file, from the examples' folder where it lies in there
        "evidence": pa.string(),
        "answerable": pa.bool_(),
        "kind": pa.list_(pa.string()),
        "split": pa.string(),
        "license": pa.string(),
    }
)


def prepare(
    folder: Path,
    *,
    source: str,
    dev: str | None,
    test: str | None,
    columns: dict[str, str],
    limits: dict[str, int | None],
    seed: int,
    workers: int = 1,
    databases: str = "both",
    preference_share: float = 0.0,
    distractors: float = 0.0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write `folder/{train,dev,test}.parquet` and `folder/quarantine.jsonl`; skipped where complete for these inputs.

    source: `embedded`, a hub data set (owner/name), a local file or folder. dev, test: files or folders; None takes
    what the source has, or cuts it out of the source. columns: our names to those of the files. limits: audited
    examples wanted of each split, drawn with `seed`, None for all. preference_share: share of the train questions that
    become a fourth split, `preference.parquet`, without limit (`hold_out`). distractors: share of the examples of these two
    with only a schema that get columns they do not need (`add_distractors`). databases: what the judge will judge on; where that is
    `given` alone, gold must have rows there.

    Returns the rows of each split and of the quarantine. Raises ValueError for what the user must mend.
    """
    inputs = identity(source, dev, test) | {
        "columns": columns,
        "limits": {split: limits.get(split) for split in SPLITS},
        "seed": seed,
        "distractors": distractors,
    }
    if preference_share:
        inputs["preference_share"] = preference_share
    if databases == "given":
        inputs["databases"] = databases
    splits = (*SPLITS, PREFERENCE) if preference_share else SPLITS
    _refuse_own(folder, {"data.source": source, "data.dev": dev, "data.test": test})
    if totals := _finished(folder, inputs, splits, overwrite):
        return totals
    rows = gather(source, dev, test, columns, folder / "databases", seed)
    for split in SPLITS:
        if not rows[split]:
            raise ValueError(
                f"the {split} split is empty: 0 rows read. Every split needs rows. "
                + ("Add rows to data.source." if split == "train" else f"Name a file with rows in data.{split}.")
            )
    dropped = {split: Counter() for split in splits}
    examples: dict[str, list[dict]] = {}
    quarantine: list[dict] = []
    separated = hold_out(separate(rows, dropped), preference_share)
    for split, candidates in separated.items():
        examples[split], failed = _select(candidates, split, limits.get(split), seed, workers, dropped[split], databases)
        quarantine += failed
    changed = dict.fromkeys(splits, 0)
    for split in {"train", PREFERENCE} & set(splits) if distractors else ():
        plain = examples[split]
        examples[split] = add_distractors(plain, share=distractors, seed=seed)
        changed[split] = sum(old["context"] != new["context"] for old, new in zip(plain, examples[split], strict=True))
    read = {split: len(rows[split]) for split in SPLITS}
    if preference_share:
        read[PREFERENCE] = len(separated[PREFERENCE])
        read["train"] -= read[PREFERENCE]
    return _write(folder, inputs, read, dropped, examples, quarantine, changed)


def prepare_questions(
    folder: Path,
    where: str,
    *,
    columns: dict[str, str],
    limit: int | None,
    seed: int,
    databases: str = "both",
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write `folder/questions.parquet`: all audited rows of a file, a folder or a hub data set, to ask models about.

    Nothing is split and no duplicate dropped; limits, quarantine and skipping are as in `prepare`.
    """
    rows, identified = gather_questions(where, columns)
    inputs = identified | {"columns": columns, "limit": limit, "seed": seed} | ({"databases": databases} if databases == "given" else {})
    _refuse_own(folder, {"--data": where})
    if totals := _finished(folder, inputs, ("questions",), overwrite):
        return totals
    if not rows:
        raise ValueError(f"{where} is empty: 0 rows read. Needed is at least one question. Name a file with rows.")
    dropped = {"questions": Counter()}
    examples, quarantine = _select(rows, "questions", limit, seed, workers, dropped["questions"], databases)
    return _write(folder, inputs, {"questions": len(rows)}, dropped, {"questions": examples}, quarantine, {})


def load(folder: Path, split: str) -> list[dict]:
    """The examples of one split (train, dev, test; questions) as they were written, database paths made absolute."""
    examples = read_parquet(folder / f"{split}.parquet")
    for example in examples:
        if example["database"] is not None:
            example["database"] = str(folder.resolve() / example["database"])
    return examples


def _refuse_own(folder: Path, places: dict[str, str | None]) -> None:
    """Raise ValueError where rows are to be read from the folder that is written, and deleted with --overwrite."""
    for key, where in places.items():
        if not where or where == "embedded" or not (place := Path(where).expanduser()).exists():
            continue  # a name, not a place
        if place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{key}: {where} stands in {folder}, which this step writes, and may delete. Move the file elsewhere, or choose "
                             "another folder for the run.")


def _finished(folder: Path, inputs: dict, splits: tuple[str, ...], overwrite: bool) -> dict[str, int] | None:
    """The row counts of a folder that is complete for these inputs, else None; ValueError if it is for others.

    A folder counts as begun only once its mark stands: what was stopped by a mistake in the settings made nothing
    that the corrected settings could spoil.
    """
    mark = mark_path(folder)
    if not (mark.exists() and is_complete(folder, inputs, overwrite)):
        return None
    whole = all((folder / f"{split}.parquet").is_file() for split in splits)
    return json.loads(mark.read_text(encoding="utf-8"))["rows"] if whole else None


def _select(
    rows: list[Row], split: str, limit: int | None, seed: int, workers: int, dropped: Counter, databases: str
) -> tuple[list[dict], list[dict]]:
    """Audited examples in the order of their source, and the quarantine's entries; `dropped` counts what goes.

    With a limit the rows are drawn by a seeded shuffle and audited until the limit is full: what fails the audit is
    made good by the next rows drawn, and no more rows are audited than that takes.
    """
    sound = [row for row in rows if row.problem is None]
    failed = [_entry(row, split, *row.problem) for row in rows if row.problem is not None]
    order = list(range(len(sound)))
    if limit is not None:
        Random(f"{seed}:{split}").shuffle(order)
    kept: dict[int, dict] = {}
    tried = 0
    while tried < len(order) and (limit is None or len(kept) < limit):
        batch = order[tried:] if limit is None else order[tried : tried + limit - len(kept)]
        # The batches that refill the limit are small: a progress bar for the first is enough.
        # What trains is only to run and to have rows: how well databases tell it from wrong queries matters to the
        # judge. Two databases find the same as its six in a third of the time (1,277 rows of sql-create-context).
        asked = [sound[index].example for index in batch]
        arguments = {"databases": "given", "mutants": 0, "tidy": 1, "near": 1}
        verdicts = list(audit(asked, workers, seed, progress=tried == 0, **arguments))
        # What has no rows on its own database may have some on generated ones, where the judge makes such.
        empty = [place for place, verdict in enumerate(verdicts)
                 if verdict["reason"] == "empty" and asked[place]["database"] and databases != "given"]
        if empty:
            again = audit([asked[place] for place in empty], workers, seed, progress=False, **arguments | {"databases": "both"})
            for place, verdict in zip(empty, again, strict=True):
                verdicts[place] = verdict
        tried += len(batch)
        for index, verdict in zip(batch, verdicts, strict=True):
            if verdict["status"] == "gold_bad":
                failed.append(_entry(sound[index], split, verdict["reason"], verdict["detail"]))
            else:
                kept[index] = sound[index].example | {
                    "gold_sql": verdict["gold_sql"],
                    "kind": verdict["kinds"],
                    "answerable": verdict["status"] == "ok",
                    "split": split,
                }
    dropped.update(f"quarantine: {entry['reason']}" for entry in failed)
    dropped["over the limit"] = len(order) - tried
    return [kept[index] for index in sorted(kept)], failed


def _entry(row: Row, split: str, reason: str, detail: str) -> dict:
    """One line of quarantine.jsonl."""
    return {
        "example_id": row.example["example_id"],
        "split": split,
        "file": row.file,
        "row": row.number,
        "reason": reason,
        "detail": detail,
        # A CSV row may hold cells without a header, under the key None.
        "content": {str(key): value for key, value in (row.content or row.example).items()},
    }


def _write(
    folder: Path,
    inputs: dict,
    read: dict[str, int],
    dropped: dict[str, Counter],
    examples: dict[str, list[dict]],
    quarantine: list[dict],
    changed: dict[str, int],
) -> dict[str, int]:
    """Write quarantine and splits, print what became of the rows, and mark the folder complete."""
    # backslashreplace: half characters, for which a row is here, are written as JSON writes them.
    with (atomic_path(folder / "quarantine.jsonl") as temporary,
          open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file):
        for entry in quarantine:
            # Parquet and hub rows may hold dates or bytes.
            file.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
    _show(read, dropped, examples, changed)
    for split, rows in examples.items():
        if not rows:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in dropped[split].most_common() if count)
            raise ValueError(
                f"the {split} split is empty: all {read[split]} rows read were dropped, {reasons}. At least one must "
                f"be sound. Mend the rows that {folder / 'quarantine.jsonl'} lists, or give others."
            )
        write_parquet(folder / f"{split}.parquet", [_stored(row, folder) for row in rows], EXAMPLES_SCHEMA)
    totals = {split: len(rows) for split, rows in examples.items()} | {"quarantine": len(quarantine)}
    mark_complete(folder, inputs, totals)
    return totals


def _stored(example: dict, folder: Path) -> dict:
    """An example as it is written: a database in the folder by its path from there, so that the folder can move."""
    database = example["database"]
    if database is not None and Path(database).resolve().is_relative_to(folder.resolve()):
        database = Path(database).resolve().relative_to(folder.resolve()).as_posix()
    return {**example, "database": database}


def _show(read: dict[str, int], dropped: dict[str, Counter], examples: dict[str, list[dict]],
          changed: dict[str, int]) -> None:
    """Print rows read, dropped by reason and kept, a column a split."""
    splits = tuple(read)
    table = Table("rows", *splits, title="Examples")
    for column in table.columns[1:]:
        column.justify = "right"

    def line(label: str, numbers: dict[str, int], style: str | None = None) -> None:
        table.add_row(label, *(f"{numbers[split]:,}" if numbers[split] else "-" for split in splits), style=style)

    line("read", read)
    for reason in sorted({reason for counter in dropped.values() for reason in counter if counter[reason]}):
        line(reason, {split: dropped[split][reason] for split in splits})
    line("kept", {split: len(examples[split]) for split in splits}, style="bold")
    unanswerable = {split: sum(not example["answerable"] for example in examples[split]) for split in splits}
    if any(unanswerable.values()):
        line("  unanswerable", unanswerable)
    if any(changed.values()):
        line("  with distractors", changed)
    Console().print(table)

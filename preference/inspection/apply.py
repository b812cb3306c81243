"""`inspect-preferences apply`: writes the pairs anew with people's word above the executor's, and keeps the old file."""

from __future__ import annotations

import glob
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from preference.inspection.decisions import Action, Revision, revise, revised_row
from preference.inspection.files import columns_of, parquet
from preference.inspection.index import identifier
from preference.report_page.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from preference.inspection.store import Store

_BATCH_ROWS = 20_000
_SHOWN_REFUSALS = 10
_ADDED_COLUMNS = ("pair_id", "person_label")
GOLD_WRONG = "person_gold_wrong"


def apply_labels(store: Store, console: Console) -> Revision:
    """Revise the opened pairs by the labels beside them, write the files whose pairs change, and say what was done.

    Raises ValueError where there is nothing to apply, or the file is no Parquet file of pairs.
    """
    if store.kind != "pairs":
        raise ValueError(f"{store.files.named} holds candidates, not pairs. Labels change pairs. Name a run's folder or its "
                         "pairs.parquet.")
    if other := next((path for path in store.files.original if path.suffix != ".parquet"), None):
        raise ValueError(f"{other} is no Parquet file, and apply writes Parquet. Convert it first (inspect-preferences export "
                         f"{other} --evidence --output FOLDER) and label the copy.")
    labels = store.labels.latest()
    rankings = {example_id: store.question(example_id)["rankings"] for example_id in store.labels.rankings()}
    if not labels and not rankings:
        raise ValueError(f"there are no labels in {store.labels_path}. Needed is at least one. Label first: "
                         f"inspect-preferences serve {store.files.named}")
    pairs = _spoken_of(store, set(labels), set(rankings))
    revision = revise(pairs, labels, rankings, lambda example_id: store.question(example_id)["queries"], _prompts(store))
    gone = {label.pair_id for label in revision.refused} - {pair["pair_id"] for pair in pairs.values()}
    before = kept_pairs(store, gone)
    revision.refused = [label for label in revision.refused if label.pair_id not in before]
    changes = {row: action for row, action in revision.actions.items()
               if action.what != "keep" or action.person_label != pairs[row].get("person_label")}
    quarantine(store.files.run / "data" if store.files.run else store.files.original[0].parent, revision, pairs)
    for number, path in enumerate(store.files.original):
        mine = {pairs[row]["file_row"]: action for row, action in changes.items() if pairs[row]["file"] == number}
        added = revision.added if number == len(store.files.original) - 1 else []
        if not mine and not added:
            console.print(f"{path}: already as people say", markup=False, soft_wrap=True)
            continue
        _add_dropped(path.with_name("dropped.parquet"), [pairs[row] | {"action": action} for row, action in changes.items()
                                                        if pairs[row]["file"] == number and action.what == "drop"])
        named = "pair_id" in store.types[number]
        names = [] if named else [row["pair_id"] for row in store.rows(
            f"SELECT pair_id FROM store.pairs WHERE file = {number} ORDER BY row")]
        kept = rewrite(path, mine, added, names)
        console.print(f"{path}: written anew; the old file is {kept.name}", markup=False, soft_wrap=True)
    say(revision, console)
    return revision


def say(revision: Revision, console: Console) -> None:
    """Print what a revision does, and the labels that it could not use."""
    for name, count in revision.counts().items():
        if count:
            console.print(f"  {count:>7,} {name}", markup=False)
    for reason, count in revision.unused.items():
        console.print(f"  {count:>7,} comparisons of rankings unused: {reason}", markup=False)
    if revision.conflicts:
        console.print(f"  annotators disagree without a majority, the executor's word stays: "
                      f"{', '.join(revision.conflicts[:_SHOWN_REFUSALS])}", markup=False)
    if revision.refused:
        console.print("  refused, since the pair is gone or has other texts by now: " + ", ".join(
            f"{label.pair_id} ({visible(label.annotator)}: {label.label})" for label in revision.refused[:_SHOWN_REFUSALS])
            + (" ..." if len(revision.refused) > _SHOWN_REFUSALS else ""), markup=False)


def _spoken_of(store: Store, pair_ids: set[str], example_ids: set[str]) -> dict[int, dict]:
    """The pairs with a label, and all pairs of questions with a labelled or ranked pair, by row number."""
    for name, values in (("spoken_pairs", pair_ids), ("spoken_questions", example_ids)):
        store.rows(f"CREATE OR REPLACE TABLE {name} AS SELECT unnest(?::VARCHAR[]) AS id", [sorted(values)])
    places = store.rows("""
      SELECT row, file, file_row, pair_id, example_id FROM store.pairs WHERE pair_id IN (FROM spoken_pairs) OR example_id IN
      (SELECT example_id FROM store.pairs WHERE pair_id IN (FROM spoken_pairs) UNION FROM spoken_questions) ORDER BY row""")
    found = {}
    for number in sorted({place["file"] for place in places}):
        mine = [place for place in places if place["file"] == number]
        for start in range(0, len(mine), _BATCH_ROWS):
            part = mine[start:start + _BATCH_ROWS]
            for place, pair in zip(part, store.whole(number, [place["file_row"] for place in part]), strict=True):
                found[place["row"]] = pair | place
    return found


def _prompts(store: Store):
    """A function that gives a question's prompt and what all its pairs share, for pairs made of rankings."""
    from sft.prompt import render

    shared = ("question", "context", "database", "gold_sql", "kind", "suite_hash", "kill_score", "round", "seed",
              "checkpoint_hash", "prompt_hash")
    styles: list[str] = []

    def style_of_the_file() -> str | None:
        """The schema style with which an existing pair's prompt comes out as it is."""
        if not styles:
            for pair in (store.pair(row["pair_id"]) for row in store.page(limit=20)[1]):
                if pair.get("context") and pair.get("question") and isinstance(pair.get("prompt"), list):
                    for style in ("compact", "ddl"):
                        example = (store.question(pair["example_id"])["example"] or {}) if pair.get("example_id") else {}
                        if render({**pair, "evidence": example.get("evidence")}, style) == pair["prompt"]:
                            styles.append(style)
                            return style
            styles.append("")
        return styles[0] or None

    def prompt_of(example_id: str) -> tuple[list | None, dict]:
        found = store.question(example_id)
        if found["pairs"]:
            pair = store.pair(found["pairs"][0]["pair_id"])
            return pair.get("prompt"), {name: pair.get(name) for name in shared}
        example, style = found["example"], style_of_the_file()
        if example is None or style is None:
            return None, {}
        return render(example, style), {name: example.get(name) for name in shared}

    return prompt_of


def rewrite(path: Path, actions: dict[int, Action], added: list[dict], names: list[str]) -> Path:
    """Write a Parquet file anew, batch by batch, and give the name under which the old one is kept.

    actions: row of the file -> what becomes of it. names: ids of all rows of a file without ids: sides that change places
    would change an id that is made of the texts. The new file takes the old one's place in one step.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sft.artefacts import atomic_path, mark_complete, mark_path

    source = pq.ParquetFile(path)
    schema = source.schema_arrow.remove_metadata()
    for name in _ADDED_COLUMNS:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    offset = count = 0
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in source.iter_batches(_BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                for name in schema.names[table.num_columns:]:
                    ids = names[offset:offset + len(table)] if name == "pair_id" else [None] * len(table)
                    table = table.append_column(name, pa.array(ids, pa.string()))
                here = {row - offset: action for row, action in actions.items() if offset <= row < offset + len(table)}
                offset += len(table)
                table = _revised(table, here, schema) if here else table
                writer.write_table(table)
                count += len(table)
            if added:
                writer.write_table(pa.Table.from_pylist([_fitting(row, schema) for row in added], schema))
        kept = _keep(path)
    if mark_path(path).exists():  # the step stays complete: the labels came on top of it
        mark = json.loads(mark_path(path).read_text(encoding="utf-8"))
        mark_complete(path, mark["inputs"], mark["rows"] | {"pairs": count + len(added)})
    return kept


def _revised(table, actions: dict[int, Action], schema):
    """A table after actions on some of its rows: runs of untouched rows, and touched ones as they are now."""
    import pyarrow as pa

    parts, start = [], 0
    for row in sorted(actions):
        parts.append(table.slice(start, row - start))
        revised = revised_row(table.slice(row, 1).to_pylist()[0], actions[row])
        if revised is not None:
            parts.append(pa.Table.from_pylist([revised], schema))
        start = row + 1
    parts.append(table.slice(start))
    return pa.concat_tables([part.cast(schema) for part in parts])


def _fitting(row: dict, schema) -> dict:
    """A new pair with the columns that a file has; texts where that has texts instead of messages."""
    import pyarrow as pa

    fitting = {name: row[name] for name in schema.names if name in row}
    for side in ("chosen", "rejected"):
        if side in fitting and pa.types.is_string(schema.field(side).type):
            fitting[side] = row[side][-1]["content"]
    return fitting


def _keep(path: Path) -> Path:
    """Give a file a second name, NAME.parquet.before-labels-N, that no file has yet.

    It does not end in .parquet: whoever loads all files of a folder must not get the old pairs beside the new ones.
    """
    for number in range(1, 100_000):
        kept = path.with_name(f"{path.name}.before-labels-{number}")
        try:
            os.link(path, kept)
            return kept
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if not kept.exists():
                shutil.copy2(path, kept)
                return kept
    raise OSError(f"{path} has 100,000 kept versions")


def kept_pairs(store: Store, wanted: set[str]) -> dict[str, dict]:
    """Pairs by id, of those wanted, from the files that earlier calls kept: what people dropped stands only there."""
    found: dict[str, dict] = {}
    for path in store.files.original if wanted else ():
        for kept in sorted(path.parent.glob(f"{glob.escape(path.name)}.before-labels-*"), key=os.path.getmtime):
            try:
                own = identifier(columns_of(store.connection, kept))
                rows = store.rows(f"SELECT *, {own} AS found_id FROM {parquet(kept)} WHERE found_id IN (SELECT unnest(?::VARCHAR[]))",
                                  [sorted(wanted)])
            except (ValueError, duckdb.Error):  # damaged: it tells nothing
                continue
            found |= {row["found_id"]: row | {"pair_id": row["found_id"]} for row in rows}
    return found


def dropped_entries(pairs: list[dict]) -> list[dict]:
    """Rows of dropped.parquet for pairs that an `action` drops."""
    return [{"example_id": pair.get("example_id"), "reason": f"person_{pair['action'].person_label or 'with_question'}",
             "detail": f"pair {pair['pair_id']}: {', '.join(pair['action'].annotators)}"} for pair in pairs]


def _add_dropped(path: Path, pairs: list[dict]) -> None:
    if pairs and path.is_file():
        from preference.pairs import DROPPED_SCHEMA
        from sft.artefacts import read_parquet, write_parquet

        rows = read_parquet(path)
        write_parquet(path, rows + [row for row in dropped_entries(pairs) if row not in rows], DROPPED_SCHEMA)


def quarantine(folder: Path, revision: Revision, pairs: dict[int, dict]) -> None:
    """Add the questions whose gold people call wrong to FOLDER/quarantine.jsonl, each once."""
    from sft.artefacts import atomic_path

    path = folder / "quarantine.jsonl"
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []
    there = {entry.get("example_id") for line in lines if GOLD_WRONG in line for entry in [json.loads(line)]
             if entry.get("reason") == GOLD_WRONG}
    new = []
    for example_id, annotators in revision.quarantined.items():
        if example_id not in there:
            pair = next(pair for pair in pairs.values() if pair.get("example_id") == example_id)
            new.append(json.dumps({
                "example_id": example_id, "split": "train", "file": None, "row": None, "reason": GOLD_WRONG,
                "detail": f"said by {', '.join(annotators)}",
                "content": {name: pair.get(name) for name in ("question", "context", "database", "gold_sql", "source")},
            }, ensure_ascii=False, default=str))
    if new:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join([*lines, *new]) + "\n", encoding="utf-8")

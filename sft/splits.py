"""Which rows are train, dev and test: as the source gives them, from files of their own, or cut out of the source."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from reward.queries import canonical_sql, normalise_gold
from sft.artefacts import content_hash, file_hash
from sft.sources import SPLIT_FILES, Row, folded, identify, local_path, read_files, read_hub, split_files

SPLITS = ("train", "dev", "test")
# Train questions that stage one leaves to stage two, where the configuration asks for that.
PREFERENCE = "preference"
# A split that nobody gives is cut out of the source: the rows where sha1(key) mod 10 is this.
CUT = {"dev": 5, "test": 6}
EMBEDDED = Path(__file__).parent / "embedded"
# Files of sft/embedded that make the model, not the data.
MODEL_FILES = ("gguf_checkpoint.py", "model.py")


def identity(source: str, dev: str | None, test: str | None) -> dict[str, object]:
    """What identifies the rows that `gather` would read, without reading them: names and hashes, no places.

    A hub data set is identified by its name alone, so that a finished run needs no connection.
    """
    if source == "embedded":
        files = sorted(file for file in EMBEDDED.rglob("*") if file.suffix in (".py", ".yaml"))
        hashes = {file.name: file_hash(file) for file in files if file.name not in MODEL_FILES}
        found: dict[str, object] = {"source": f"embedded {content_hash(hashes)[:16]}"}
    elif (path := local_path(source, "data.source")) is None:
        found = {"source": source}
    else:
        splits = SPLITS if path.is_dir() else ("train",)
        found = {"source": {split: identify(path, split) for split in splits}}
    for split, where in (("dev", dev), ("test", test)):
        found[split] = identify(local_path(where, f"data.{split}"), split) if where else None
    return found


def gather(
    source: str, dev: str | None, test: str | None, columns: dict[str, str], folder: Path, seed: int
) -> dict[str, list[Row]]:
    """The rows of the three splits, before anything is dropped; the embedded databases are written into `folder`.

    Raises ValueError for files that are missing, cannot be read, lack a column or serve two splits.
    """
    rows: dict[str, list[Row]] = {}
    files: dict[str, list[Path]] = {}
    if source == "embedded":
        rows = _embedded(folder, seed)
    elif (path := local_path(source, "data.source")) is None:
        rows = read_hub(source, columns)
    else:
        files = {split: split_files(path, split) for split in (SPLITS if path.is_dir() else ("train",))}
        files = {split: paths for split, paths in files.items() if paths}
    for split, where in (("dev", dev), ("test", test)):
        if where:
            files[split] = split_files(local_path(where, f"data.{split}"), split)
    for split, where in (("train", source), ("dev", dev), ("test", test)):
        if where and not (rows.get(split) or files.get(split)):
            stems = " or ".join(SPLIT_FILES[split])
            raise ValueError(
                f"{where} has no {split} rows. A folder needs {stems} with the ending .json, .jsonl, .csv or .parquet. "
                f"Add the file, or name the file itself in data.{'source' if split == 'train' else split}."
            )
    _check_separate(files)
    stems: set[str] = set()
    for split, paths in files.items():
        prefix = f"{split}-" if stems & {path.stem for path in paths} else ""
        rows[split] = read_files(paths, columns, prefix)
        stems |= {path.stem for path in paths}
    return _cut(rows)


def gather_questions(where: str, columns: dict[str, str]) -> tuple[list[Row], dict[str, object]]:
    """All rows of a file, a folder or a hub data set, whatever their split, and what identifies them."""
    path = local_path(where, "--data")
    if path is None:
        return [row for rows in read_hub(where, columns).values() for row in rows], {"data": where}
    splits = SPLITS if path.is_dir() else ("test",)
    files = [file for split in splits for file in split_files(path, split)]
    if not files:
        names = ", ".join(stem for stems in SPLIT_FILES.values() for stem in stems)
        raise ValueError(
            f"{where} holds no questions. A folder needs a file {names} with the ending .json, .jsonl, .csv or "
            ".parquet. Add one, or name the file itself."
        )
    return read_files(files, columns), {"data": {split: identify(path, split) for split in splits}}


def _check_separate(files: dict[str, list[Path]]) -> None:
    """Raise ValueError where one file is to serve two splits."""
    owners: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            owner = owners.setdefault(path.resolve(), split)
            if owner != split:
                raise ValueError(
                    f"{path} is named as {owner} and as {split} data. Each split needs rows of its own. Give another "
                    f"file, or leave data.{split} empty (null): {split} rows are then cut out of the source."
                )


def _embedded(folder: Path, seed: int) -> dict[str, list[Row]]:
    from sft.embedded.questions import build

    built = build(seed, folder)
    return {
        split: [
            Row(example, "embedded", number, {}, cut_key="", problem=None)
            for number, example in enumerate(built[split], start=1)
        ]
        for split in SPLITS
    }


def _cut(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Cut the splits that are missing out of the train rows, by a hash, so that a row never changes its split."""
    buckets = {bucket: split for split, bucket in CUT.items() if split not in rows}
    cut: dict[str, list[Row]] = {split: list(rows.get(split, [])) for split in SPLITS if split != "train"}
    train = []
    for row in rows["train"]:
        bucket = int(hashlib.sha1(folded(row.cut_key).encode(errors="surrogatepass")).hexdigest(), 16) % 10
        cut[buckets[bucket]].append(row) if bucket in buckets else train.append(row)
    return {"train": train, **cut}


def hold_out(rows: dict[str, list[Row]], share: float) -> dict[str, list[Row]]:
    """The splits with `share` (0 to 1) of the train questions as a further one, PREFERENCE; as they are where it is 0.

    What stands on either side shares no question, and no answer on one schema, with the other: rows that do are held out
    together, by the hash of the first of their questions. Rows without an answer stay in train, which alone
    learns from them. Raises ValueError where a side would be empty.
    """
    if not share:
        return rows
    sides: dict[str, list[Row]] = {"train": [], PREFERENCE: []}
    for row, family in zip(rows["train"], _families([row.example for row in rows["train"]]), strict=True):
        digest = hashlib.sha1(f"{PREFERENCE}:{family}".encode(errors="surrogatepass")).hexdigest()
        held = row.problem is None and row.example["gold"] is not None and int(digest, 16) < share * 16**40
        sides[PREFERENCE if held else "train"].append(row)
    for split, kept in sides.items():
        if not kept:
            raise ValueError(f"the {split} split is empty: data.preference_share={share} leaves it none of {len(rows['train'])} "
                             "rows. Both stages need questions. Choose a share nearer to 0.5, or give more rows.")
    return {**rows, **sides}


def _families(examples: list[dict]) -> list[str]:
    """For each example its family's first question in the alphabet, in small letters: examples with the same question, or with
    the same gold (in canonical form) on the same schema, are of one family.

    Example: (a, SELECT 1), (b, SELECT 1), (b, SELECT 2), (c, SELECT 3), all on one schema -> a, a, a, c.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = parents[parent]
            name = parents[name]
        return name

    asked = [f"question {folded(example['question'])}" for example in examples]
    for question, example in zip(asked, examples, strict=True):
        if example["gold"] is not None:
            gold = canonical_sql(normalise_gold(example["gold"], example["context"] or ""))
            # "question" sorts before "schema": a family's root is a question.
            one, other = sorted((root(question), root(f"schema {folded(example['context'])}: {folded(gold)}")))
            parents[other] = one
    return [root(question).removeprefix("question ") for question in asked]


def separate(rows: dict[str, list[Row]], dropped: dict[str, Counter]) -> dict[str, list[Row]]:
    """Leave out exact duplicates, and rows whose question another split asks too; `dropped` counts them.

    A question stays in test before dev, and in dev before train. Rows with a problem pass: they go to quarantine.
    """
    asked: set[str] = set()
    kept: dict[str, list[Row]] = {}
    for split in reversed(list(rows)):
        seen: set[tuple] = set()
        kept[split] = []
        for row in rows[split]:
            example = row.example
            key = example["question"], example["context"], example["gold"]
            if row.problem is None and folded(example["question"]) in asked:
                dropped[split]["question of another split"] += 1
            elif row.problem is None and key in seen:
                dropped[split]["duplicate"] += 1
            else:
                kept[split].append(row)
            seen.add(key)
        asked |= {folded(row.example["question"]) for row in rows[split] if row.example["question"]}
    return {split: kept[split] for split in rows}

"""`inspect-preferences export`: the pairs in TRL's preference format, in a folder of this machine or on the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from preference.inspection.decisions import majority
from preference.inspection.files import first_line, literal, parquet
from preference.inspection.index import prompt_text, side_text

if TYPE_CHECKING:
    from rich.console import Console

    from preference.inspection.store import Store

_CARD = """---
task_categories: [text-generation]
tags: [preference, dpo, trl, text-to-sql]
configs: [{{config_name: default, data_files: [{{split: train, path: "data/train-*.parquet"}}]}}]
---
# Preference pairs for text-to-SQL

{rows:,} pairs in TRL's preference format (prompt, chosen, rejected){evidence}. `datasets.load_dataset` reads this folder, and
`trl.DPOTrainer` trains on it as it is. People's labels applied: {people:,} pairs carry a person's word.
"""


def export_pairs(store: Store, output: Path | None, hub: str | None, evidence: bool, console: Console) -> None:
    """Write a dataset to `output`, a folder that is new or empty, or to `hub` (owner/name, private where it is new).

    evidence: all columns instead of TRL's three. Raises ValueError where there are no pairs, the folder holds something, or
    the hub cannot be written to.
    """
    if store.kind != "pairs":
        raise ValueError(f"{store.files.named} holds candidates, not pairs. Only pairs are a preference dataset. Name "
                         "pairs.parquet.")
    store.facets()  # reads the labels
    decided = {pair_id for pair_id, labels in store.labels.latest().items() if majority(label.label for label in labels.values())[0]}
    waiting = [row for row in store.rows("SELECT DISTINCT pair_id FROM store.pairs WHERE person_label IS NULL AND pair_id IN "
                                         "(SELECT pair_id FROM people)") if row["pair_id"] in decided]
    if waiting:
        console.print(f"note: {len(waiting):,} labelled pairs are exported as the executor left them; "
                      "`inspect-preferences apply` puts people's word above it", markup=False)
    if output is not None:
        _write(store, output, evidence)
        console.print(f"{store.total:,} pairs in {output}: datasets.load_dataset({str(output)!r})", markup=False, soft_wrap=True)
        return
    api = _hub(hub)
    with tempfile.TemporaryDirectory(prefix="inspect-preferences-") as folder:
        _write(store, Path(folder) / "dataset", evidence)
        from huggingface_hub.errors import HFValidationError, HTTPError  # a lost connection is an HTTPError of its client too

        try:
            api.create_repo(hub, repo_type="dataset", private=True, exist_ok=True)
            # What an earlier export wrote goes with the same commit: its files would be read along with the new ones.
            api.upload_folder(repo_id=hub, repo_type="dataset", folder_path=Path(folder) / "dataset",
                              commit_message=f"{store.total:,} preference pairs", delete_patterns="data/train-*.parquet")
        except (HTTPError, HFValidationError, OSError) as error:
            raise ValueError(f"the hub did not take {hub!r}: {first_line(error)}. Needed are a name OWNER/NAME that the token "
                             "may write to, and a connection. Check `hf auth whoami`, or export to a folder.") from None
    console.print(f"{store.total:,} pairs in https://huggingface.co/datasets/{hub}", markup=False, soft_wrap=True)


def _hub(name: str):
    """The hub's client. Raises ValueError without a token."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ValueError(f"there is no token for the hub, so {name!r:.100} cannot be written. Needed is one that may write "
                         "datasets. Run `hf auth login` or set HF_TOKEN, or export to a folder with --output.")
    return HfApi()


def _write(store: Store, folder: Path, evidence: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty. A new or empty folder is needed. Choose another --output.")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for number, (path, types) in enumerate(zip(store.files.main, store.types, strict=True)):
        target = data / f"train-{number:05d}-of-{len(store.types):05d}.parquet"
        columns = "* EXCLUDE (file_row_number)" if evidence else ", ".join(
            name if name in types else f"{text} AS {name}"
            for name, text in (("prompt", prompt_text(types)), ("chosen", side_text(types, "chosen")),
                               ("rejected", side_text(types, "rejected")))
            if name in types or (name != "prompt" and f"{name}_sql" in types))
        try:
            store.rows(f"COPY (SELECT {columns} FROM {parquet(path)} ORDER BY file_row_number) TO {literal(str(target))} "
                       "(FORMAT parquet)")
        except duckdb.Error as error:
            raise ValueError(f"{target} could not be written: {first_line(error)}. Free space and a readable {path} are "
                             "needed. Mend that and export again.") from None
    [row] = store.rows("SELECT count(person_label) AS n FROM store.pairs")
    card = _CARD.format(rows=store.total, people=row["n"], evidence=", with the evidence of each pair" if evidence else "")
    (folder / "README.md").write_text(card, encoding="utf-8")

"""The SQL behind a list of pairs: filters, search and order, with every value checked and none pasted into the text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from preference.inspection.index import KIND_SEPARATOR
from preference.inspection.labels import LABELS

SORTS = ("question", "question_length", "chosen_length", "rejected_length", "length_difference", "kill_score",
         "chosen_logp", "rejected_logp", "source", "strategy", "kind", "round", "chosen_verdict", "rejected_verdict",
         "chosen_reason", "rejected_reason", "example_id", "pair_id")
EITHER_SIDE = {"verdict": ("chosen_verdict", "rejected_verdict"), "reason": ("chosen_reason", "rejected_reason")}
FILTERS = (*EITHER_SIDE, "source", "strategy", "example_id", "kind", "labelled", "person_label", "round", "min_length",
           "max_length")
LABELLED = "(person_label IS NOT NULL OR pair_id IN (SELECT pair_id FROM people))"
_LONGER = "greatest(coalesce(chosen_length, 0), coalesce(rejected_length, 0))"
_NUMBERS = {"round": "round = ?", "min_length": f"{_LONGER} >= ?", "max_length": f"{_LONGER} <= ?"}
_SEARCHED = ("question", "chosen_sql", "rejected_sql")
_IDS = ("pair_id", "example_id")
_LONGEST_SEARCH = 500


def filter_condition(filters: dict[str, str], joined_kinds: Iterable[str] = ()) -> tuple[str, list]:
    """A condition on store.pairs and its values. Raises ValueError for an unknown filter or an impossible value.

    joined_kinds: the values of the column `kind`, each a query's kinds joined.
    """
    conditions, values = ["true"], []
    for name, value in filters.items():
        value = str(value).strip()
        if name not in FILTERS:
            near = difflib.get_close_matches(name, FILTERS, n=1)
            raise ValueError(f"there is no filter {name!r:.40}; allowed are {', '.join(FILTERS)}; "
                             + (f"did you mean {near[0]}?" if near else "choose one of them"))
        if not value:
            continue
        if name in _NUMBERS:
            if not (value.isascii() and value.isdecimal() and len(value) <= 9):
                raise ValueError(f"{name} is {value!r:.40}; allowed are whole numbers from 0; correct it")
            conditions.append(_NUMBERS[name])
            values.append(int(value))
        elif name == "labelled":
            if value not in ("yes", "no"):
                raise ValueError(f"labelled is {value!r:.40}; allowed are yes and no; choose one of them")
            conditions.append(LABELLED if value == "yes" else f"NOT {LABELLED}")
        elif name == "person_label":
            if value not in LABELS:
                raise ValueError(f"person_label is {value!r:.40}; allowed are {', '.join(LABELS)}; choose one of them")
            conditions.append("(person_label = ? OR pair_id IN (SELECT pair_id FROM people WHERE label = ?))")
            values += [value, value]
        elif name == "kind":
            fitting = [joined for joined in joined_kinds if value in joined.split(KIND_SEPARATOR)]
            conditions.append(f"kind IN ({', '.join('?' * len(fitting))})" if fitting else "false")
            values += fitting
        else:
            columns = EITHER_SIDE.get(name, (name,))
            conditions.append("(" + " OR ".join(f"{column} = ?" for column in columns) + ")")
            values += [value] * len(columns)
    return " AND ".join(conditions), values


def search_words(search: str) -> list[str]:
    """The words of a search, and its phrases "in quotes". Raises ValueError where it is too long."""
    if len(search) > _LONGEST_SEARCH:
        raise ValueError(f"the search has {len(search):,} characters; allowed are up to {_LONGEST_SEARCH}; shorten it")
    parts = search.split('"')
    return [word for index, part in enumerate(parts) for word in ([part] if index % 2 else part.split()) if word.strip()]


def search_condition(words: list[str]) -> tuple[str, list]:
    """A condition that every word occurs in a row's texts, whatever its case, or begins one of its ids."""
    conditions, values = [], []
    for word in words:
        word = word.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
        if escaped := any(character in "%_\x01" for character in word):
            word = "".join("\x01" + character if character in "%_\x01" else character for character in word)
        like = "ILIKE ?" + (" ESCAPE chr(1)" if escaped else "")
        conditions.append("(" + " OR ".join([f"{name} {like}" for name in _SEARCHED] + [f"starts_with({name}, ?)" for name in _IDS])
                          + ")")
        values += [f"%{word}%"] * len(_SEARCHED) + [word] * len(_IDS)
    return " AND ".join(conditions), values


def order(sort: str, descending: bool) -> str:
    """What follows ORDER BY. Raises ValueError for a column that cannot be sorted by."""
    if sort not in ("", *SORTS):
        near = difflib.get_close_matches(sort, SORTS, n=1)
        raise ValueError(f"pairs cannot be sorted by {sort!r:.40}; allowed are {', '.join(SORTS)}; "
                         + (f"did you mean {near[0]}?" if near else "choose one of them"))
    return f"{sort or 'row'} {'DESC' if descending else 'ASC'} NULLS LAST, row"


def beside(sort: str, descending: bool, value: object, row: int, *, after: bool) -> tuple[str, list, str]:
    """(condition, values, order) that find the row next to a given one in the order of `order(sort, descending)`.

    value: what the given row has in the column sorted by. Equal values follow each other by row number, nulls last.
    """
    key = sort or "row"
    beyond, rows = (">", "row ASC") if after else ("<", "row DESC")
    step, keys = (">", "ASC") if after != descending else ("<", "DESC")
    if value is None:
        condition = f"{key} IS NULL AND row {beyond} ?" + ("" if after else f" OR {key} IS NOT NULL")
        return condition, [row], f"{key} {keys} NULLS {'LAST' if after else 'FIRST'}, {rows}"
    condition = f"{key} {step} ? OR ({key} = ? AND row {beyond} ?)" + (f" OR {key} IS NULL" if after else "")
    return condition, [value, value, row], f"{key} {keys} NULLS LAST, {rows}"

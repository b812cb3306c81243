"""How wrong a query is: an error above wrong columns above wrong rows, and those by how many differ."""

import json

import pytest

from preference.margins import share_of_rows, wrongness
from reward import trace
from reward.compare import Denotation


def traced(gold, rows, difference="rows"):
    """What the judge keeps of a query with these rows."""
    denotation = Denotation(1, [gold], 0, len(gold), ordered=False)
    return {"gold_rows": len(gold), "rows": len(rows), **trace.first_differences(denotation, rows, difference)}


def numbers(*values):
    return [(value,) for value in values]


@pytest.mark.parametrize(
    ("gold", "rows", "share"),
    [
        # 1 is missing, 7 and 8 are extra: 3 of 9 rows.
        (numbers(1, 2, 3, 4), numbers(2, 3, 4, 7, 8), 3 / 9),
        (numbers(1, 2), numbers(3, 4), 1),
        (numbers(1, 2), [], 1),
        ([], numbers(1), 1),
        # Five are missing and three of them shown; nothing is extra, so they are 7 - 2.
        (numbers(*range(7)), numbers(0, 1), 5 / 9),
        # Five are extra: 7 - 2.
        (numbers(0, 1), numbers(*range(7)), 5 / 9),
        # Each row twice: three of six extra.
        (numbers(1, 2, 3), numbers(1, 1, 2, 2, 3, 3), 3 / 9),
        # Four differ on either side, of which three are shown.
        (numbers(*range(10)), numbers(*range(4, 14)), 8 / 20),
    ],
)
def test_the_share_of_rows_that_differ(gold, rows, share):
    found = traced(gold, rows)
    assert share_of_rows(found) == pytest.approx(share)
    assert wrongness("wrong", "rows", json.dumps(found)) == pytest.approx(0.25 + 0.45 * share, abs=1e-4)
    assert wrongness("wrong", "duplicates", json.dumps(found)) == wrongness("wrong", "rows", json.dumps(found))


def test_an_error_is_worse_than_wrong_columns_and_those_than_wrong_rows():
    few, all_of_them = (json.dumps(traced(numbers(1, 2, 3), rows)) for rows in (numbers(1, 2), numbers(7)))
    order = json.dumps(traced(numbers(1, 2), numbers(2, 1), "order"))
    found = [
        wrongness("correct", "equal", '{"rows": [3]}'),
        wrongness("wrong", "order", order),
        wrongness("wrong", "rows", few),
        wrongness("wrong", "rows", all_of_them),
        wrongness("wrong", "columns", '{"gold_columns": 1, "columns": 2}'),
        wrongness("wrong", "sql_error", '{"message": "no such column: x"}'),
    ]
    # 1 of 5 rows differs: 0.25 + 0.45 / 5.
    assert found == [0.0, 0.25, 0.34, 0.7, 0.75, 1.0]


@pytest.mark.parametrize("reason", ["refused", "timeout", "memory", "rows_limit", "abstained", None])
def test_no_result_is_as_wrong_as_an_error(reason):
    assert wrongness("wrong", reason, None) == 1.0


def test_a_trace_without_counts_of_what_differs_or_with_counts_of_a_part():
    whole = traced(numbers(*range(10)), numbers(*range(4, 14)))
    assert (whole.pop("missing"), whole.pop("extra")) == (4, 4)
    assert share_of_rows(whole) == 1  # three and three are shown: more may differ
    # Of 40 rows the first 12 came back, which lack one of gold's ten: where the rest of gold's is, is not known.
    cut = traced(numbers(*range(10)), numbers(*range(1, 13))) | {"rows": 40}
    assert (cut["missing"], cut["extra"]) == (1, 3) and share_of_rows(cut) == pytest.approx(32 / 50)


@pytest.mark.parametrize("trace", ["3 of 5 rows differ", "[1]", "5", '"text"', "{"])
def test_a_trace_of_another_kind_tells_nothing(trace):
    assert wrongness("wrong", "rows", trace) == 0.7


def test_a_trace_that_counts_nothing_tells_of_no_common_row():
    assert wrongness("wrong", "rows", None) == wrongness("wrong", "rows", "{}") == 0.7
    assert wrongness("wrong", "rows", "null") == wrongness("wrong", "rows", '{"gold_rows": null, "gold_only": null}') == 0.7

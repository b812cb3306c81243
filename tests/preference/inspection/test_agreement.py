"""Agreement: kappa on tables worked out by hand, and what labels say of a run."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from preference.inspection.agreement import cohens_kappa, kappa_with_executor, measure_agreement, print_agreement
from preference.inspection.apply import apply_labels
from preference.inspection.store import open_store

QUIET = Console(file=open("/dev/null", "w"))


def pairs(**counts):
    return [tuple(name) for name, count in counts.items() for _ in range(count)]


def test_cohens_example():
    """The textbook's grant readers: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: share 0.7, expected 0.5, kappa 0.4."""
    found = cohens_kappa(pairs(yy=20, yn=5, ny=10, nn=15))
    assert (found["n"], found["share"], found["expected"], found["kappa"]) == (50, 0.7, 0.5, pytest.approx(0.4))
    # Wilson's interval of 35 of 50 is 0.5625 to 0.8090; each end less 0.5, over 0.5.
    assert found["share_interval"] == pytest.approx([0.5625, 0.8090], abs=1e-4)
    assert found["interval"] == pytest.approx([0.1250, 0.6179], abs=1e-4)


@pytest.mark.parametrize(("counts", "kappa"), [
    ({"aa": 2, "ab": 1, "bb": 1}, 0.5),
    ({"aa": 5, "bb": 5}, 1.0),
    ({"ab": 5, "ba": 5}, -1.0),
    ({"aa": 3, "bb": 3, "cc": 3, "ab": 1}, (0.9 - 0.33) / 0.67),
    ({"aa": 7}, None),  # nobody could have disagreed by chance
])
def test_kappa(counts, kappa):
    found = cohens_kappa(pairs(**counts))
    assert found["kappa"] == (None if kappa is None else pytest.approx(kappa))
    if kappa is not None:
        low, high = found["interval"]
        assert low <= found["kappa"] <= high and high - low > 0.1, "a width at full agreement too"


@pytest.mark.parametrize(("counts", "share", "kappa"), [
    ((9, 1, 0), 0.9, 0.8),  # expected 1/2: 2 * 0.9 - 1
    ((5, 5, 0), 0.5, 0.0),
    ((0, 4, 0), 0.0, -1.0),
    ((6, 2, 2), 0.6, (0.6 - 0.4) / 0.6),  # chance meets half of the 8 of 10 on which people prefer a side
    ((0, 0, 3), 0.0, 0.0),
])
def test_kappa_with_an_executor_that_always_says_the_same(counts, share, kappa):
    words = ["prefer_chosen"] * counts[0] + ["prefer_rejected"] * counts[1] + ["tie"] * counts[2]
    found = kappa_with_executor(words)
    assert found["share"] == share and found["kappa"] == pytest.approx(kappa)


def test_without_pairs_there_is_nothing():
    assert cohens_kappa([]) == kappa_with_executor([]) and cohens_kappa([])["kappa"] is None


@pytest.fixture
def labelled(clinic_run, tmp_path):
    """A run on which ada labelled eight pairs and bo five of them."""
    run = Path(shutil.copytree(clinic_run, tmp_path / "run"))
    store = open_store(run)
    rows = store.page()[1]
    ada = ["prefer_chosen"] * 5 + ["prefer_rejected", "tie", "skip"]
    bo = ["prefer_chosen"] * 4 + ["prefer_rejected"]
    for annotator, words in (("ada", ada), ("bo", bo)):
        for row, word in zip(rows, words, strict=False):
            store.labels.add(row["pair_id"], annotator, word, content_hash=row["pair_id"])
    store.close()
    return run


def test_a_run_before_and_after_apply(labelled):
    store = open_store(labelled)
    found = measure_agreement(store)
    # The fifth pair is a conflict; of the others 4 agree, 1 is overturned, 1 is a tie.
    assert (found["executor"]["n"], found["executor"]["share"], found["conflicts"]) == (6, pytest.approx(4 / 6), 1)
    assert found["words"] == {"prefer_chosen": 4, "prefer_rejected": 1, "tie": 1}
    assert (found["overturned"], found["decided"]) == (1 / 5, 5)
    assert sum(entry["n"] for entry in found["reasons"].values()) == 6
    assert {name: (entry["n"], entry["share"]) for name, entry in found["annotators"].items()} == {
        "ada": (7, pytest.approx(5 / 7)), "bo": (5, 0.8)}
    [(left, right, between)] = found["between"]
    assert (left, right, between["n"], between["share"]) == ("ada", "bo", 5, 0.8)
    apply_labels(store, QUIET)
    store.close()
    store = open_store(labelled)
    assert measure_agreement(store) == found, "flipped and dropped pairs count as before"
    store.close()


def test_printed_for_people_and_for_machines(labelled, capsys):
    store = open_store(labelled)
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    print_agreement(store, False, console)
    shown = console.export_text()
    assert "people and executor" in shown and "ada and bo" in shown and "overturned: 20.0 % of 5 decided pairs" in shown
    print_agreement(store, True, console)
    assert json.loads(capsys.readouterr().out)["decided"] == 5
    store.close()


def test_without_labels_it_says_what_to_do(clinic_run):
    store = open_store(clinic_run)
    with pytest.raises(ValueError, match="there are no labels on these pairs .* Label first: inspect-preferences serve"):
        print_agreement(store, False, QUIET)
    store.close()

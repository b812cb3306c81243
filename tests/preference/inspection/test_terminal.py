"""The command in a terminal: what it prints of a run, quickly, and that no text of the data can act on the terminal."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from preference.inspection.command import main
from preference.inspection.differences import marked
from preference.inspection.labels import LabelFile
from preference.inspection.show import print_pair
from preference.inspection.store import open_store
from preference.inspection.summary import print_summary
from preference.inspection.terminal import bar, columns, one_line, shown
from preference.pairs import PAIRS_SCHEMA
from sft.artefacts import read_parquet, write_parquet

PROJECT = Path(__file__).parents[3]
# Colours that rich itself sets; whatever else begins with an escape came out of the data.
STYLING = re.compile(r"\x1b\[[0-9;]*m")
NASTY = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "[bold red]markup[/bold red] [link=http://x]y[/link]", "\u202eright to left\u2066",
         "bell \x07 backspace \x08\x08 nul \x00", "line\rback \u2028 \u200b \ufeff", "x" * 1_000_000, "\x9b2J C1", "a\tb\nc"]


@pytest.fixture
def run(clinic_run, tmp_path):
    return Path(shutil.copytree(clinic_run, tmp_path / "run"))


def printed(capsys, *arguments):
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


# --------------------------------------------------------------------- commands


def test_summary(run, capsys):
    shown_text = printed(capsys, "summary", run)
    count = len(read_parquet(run / "round-1" / "pairs.parquet"))
    assert f"{count} pairs of 12 questions" in shown_text and "Rejected: reason" in shown_text and "█" in shown_text
    found = json.loads(printed(capsys, "summary", run, "--json"))
    assert found["total"] == count and found["kind"] == "pairs"


def test_show_by_the_first_characters_of_an_id(run, capsys):
    row = next(row for row in read_parquet(run / "round-1" / "pairs.parquet") if row["example_id"] == "clinic/09")
    text = printed(capsys, "show", run, row["pair_id"][:7])
    assert text == printed(capsys, "show", run, row["pair_id"])
    flat = " ".join(text.split())
    assert row["question"] in flat and "pet_id → " not in flat.split("visit")[0]
    assert "owner_id INTEGER → owner.owner_id" in flat and "⟦OR⟧" in flat, "without colours brackets mark what differs"
    assert "On database given (given) ≠ marks rows that differ" in flat and "≠ │ 2024-01-10" in flat.replace("│≠", "│ ≠")
    assert "strategy nearest: of all wrong queries the one nearest" in flat and "checkpoint hash 5c1f0a9b2e77" in flat
    assert re.search(r"told apart on (\d) of 7 databases", flat) and "what told it apart" in flat


def test_an_unknown_id_names_the_nearest(run, capsys):
    ids = [row["pair_id"] for row in read_parquet(run / "round-1" / "pairs.parquet")]
    with pytest.raises(SystemExit) as error:
        main(["show", str(run), ids[0][:-1] + "~"])
    assert str(error.value).startswith("error: no pair has the id") and ids[0] in str(error.value)
    with pytest.raises(SystemExit, match="no pair has the id ''"):
        main(["show", str(run), ""])


def test_a_database_and_a_schema_that_are_gone(run, capsys):
    rows = read_parquet(run / "round-1" / "pairs.parquet")
    changes = ({"database": "/gone/clinic.sqlite"}, {"database": "/gone/clinic.sqlite", "context": None},
               {"database": None, "context": "CREATE TABLE broken (("}, {"gold_sql": None}, {"gold_sql": "SELECT nonsense"})
    write_parquet(run / "round-1" / "pairs.parquet", [row | new for row, new in zip(rows, changes, strict=False)], PAIRS_SCHEMA)
    texts = [" ".join(printed(capsys, "show", run, row["pair_id"]).split()) for row in rows[:5]]
    assert "the database '/gone/clinic.sqlite' is gone; shown is the schema" in texts[0] and "On database" in texts[0]
    assert "is gone and it has no schema" in texts[1] and "On database" not in texts[1]
    assert "the schema cannot be read" in texts[2] and "no databases to judge on" in texts[2]
    assert "made for the chosen query" in texts[3] and "gold makes no databases to judge on: sql_error" in texts[4]
    for text, row in zip(texts, rows, strict=False):
        assert row["question"] in text and "Why this pair" in text, "what can be shown is shown"


def label_with(run, keys, capsys, monkeypatch, *options):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(keys)))
    return printed(capsys, "label", run, "--annotator", "ada", *options)


def test_label_with_the_pages_keys(run, capsys, monkeypatch):
    pairs = read_parquet(run / "round-1" / "pairs.parquet")
    text = label_with(run, ["b", "t", "u", "w", "c", "the schema is odd", "n", "z", "a", "x"], capsys, monkeypatch)
    found = LabelFile(run / "labels.sqlite")
    assert {name: labels["ada"].label for name, labels in found.latest().items()} == {
        pairs[0]["pair_id"]: "prefer_rejected", pairs[1]["pair_id"]: "both_wrong", pairs[3]["pair_id"]: "prefer_chosen"}
    assert [entry["comment"] for entry in found.comments(pairs[2]["pair_id"])] == ["the schema is odd"]
    assert "kept: Prefer B" in text and "'z' is no key; allowed are a, b, t" in text and "4 labels in" in text
    # The next session goes on where no word of this annotator stands; the end of the input ends it.
    label_with(run, ["g"], capsys, monkeypatch)
    assert found.latest()[pairs[2]["pair_id"]]["ada"].label == "gold_wrong"
    label_with(run, ["q"], capsys, monkeypatch, "--filter", "example_id=clinic/09")
    assert {pair["example_id"] for pair in pairs if found.of(pair["pair_id"]).get("ada", (0,) * 4)[3] == "unanswerable"} == {"clinic/09"}
    found.close()


def test_arrow_keys_and_held_keys_label_nothing_by_themselves(run):
    """In a real terminal, where an arrow comes as ESC [ A, and a key that is held as many."""
    import pty
    import select
    import time

    main_end, terminal_end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "preference.inspection.command", "label", str(run), "--annotator", "ada"],
                               cwd=PROJECT, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end,
                               env=os.environ | {"PYTHONPATH": str(PROJECT), "TERM": "xterm"})
    os.close(terminal_end)
    heard = b""

    def wait_for(words):
        nonlocal heard
        deadline = time.monotonic() + 60
        while words not in heard:
            assert select.select([main_end], [], [], max(0, deadline - time.monotonic()))[0], heard[-500:]
            heard += os.read(main_end, 65536)
        heard = heard[heard.index(words) + len(words):]

    try:
        for typed, words in ((b"\x1b[A", b"is no key"), (b"\x1b[B", b"is no key"), (b"\x1bOC", b"is no key"), (b"ttttt", b"kept: Tie"),
                             (b"b", b"kept: Prefer B")):
            wait_for(b"[x] end")
            time.sleep(0.3)  # until it reads
            os.write(main_end, typed)
            wait_for(words)
        wait_for(b"[x] end")
        time.sleep(0.3)
        os.write(main_end, b"\x04")
        wait_for(b"2 labels in")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_end)
    pairs = read_parquet(run / "round-1" / "pairs.parquet")
    assert {name: held["ada"].label for name, held in LabelFile(run / "labels.sqlite").latest().items()} == {
        pairs[0]["pair_id"]: "tie", pairs[1]["pair_id"]: "prefer_rejected"}


def test_blind_labels_are_stored_as_sides_and_nothing_tells_them(run, capsys, monkeypatch):
    pairs = read_parquet(run / "round-1" / "pairs.parquet")
    text = label_with(run, ["a"] * len(pairs), capsys, monkeypatch, "--blind")
    found = LabelFile(run / "labels.sqlite").latest()
    words = [found[pair["pair_id"]]["ada"].label for pair in pairs]
    assert {"prefer_chosen", "prefer_rejected"} == set(words), "A is the chosen side for some pairs only"
    for telling in ("correct", "wrong: ", "chosen", "rejected", "Gold ", "≠"):
        assert telling not in text.replace("Gold wrong", "").replace("Both wrong", ""), telling
    first = text[: text.index("kept:")]
    shown_first = pairs[0]["chosen_sql"] if words[0] == "prefer_chosen" else pairs[0]["rejected_sql"]
    a_side = first[first.index("─ A ─"): first.index("─ B ─")].replace("⟦", "").replace("⟧", "")
    assert shown_first in " ".join(a_side.replace("│", " ").split())


def test_wrong_filters_and_files_end_with_words(run, capsys):
    for arguments, message in [
        (["label", run, "--filter", "reason"], "no NAME=VALUE"), (["label", run, "--filter", "reasons=rows"], "did you mean reason"),
        (["label", run / "round-1" / "candidates.parquet"], "holds candidates, not pairs"),
        (["summary", run / "round-1" / "verdicts.parquet"], "is no preference file: its columns are"),
        (["export", run, "--output", run], "is not empty"),
    ]:
        with pytest.raises(SystemExit) as error:
            main([str(argument) for argument in arguments])
        assert message in str(error.value) and str(error.value).startswith("error: ")


# ------------------------------------------------------------------ hostile texts


@pytest.fixture
def hostile(tmp_path):
    rows = []
    for number, text in enumerate(NASTY):
        query = f"SELECT '{text[:2000]}' AS \"{text[:40]}\""
        rows.append({
            "pair_id": f"{number}{text[:40]}", "example_id": text[:80], "question": text, "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": text}], "rejected": [{"role": "assistant", "content": f"{text}!"}],
            "chosen_sql": text if number % 2 else query, "rejected_sql": f"SELECT '{text}', 1", "chosen_verdict": text[:40],
            "chosen_reason": text[:80], "rejected_verdict": "wrong", "rejected_reason": text[:40], "source": text[:40],
            "strategy": text[:40], "kind": [text[:40]], "rejected_trace": json.dumps({"database": text[:40], "message": text}),
            "context": f'CREATE TABLE "t {text[:60]}" ("c {text[:60]}" TEXT)', "gold_sql": query, "checkpoint_hash": text[:40]})
    write_parquet(tmp_path / "pairs.parquet", [{name: row.get(name) for name in PAIRS_SCHEMA.names} for row in rows], PAIRS_SCHEMA)
    store = open_store(tmp_path / "pairs.parquet")
    for row in rows:
        store.labels.add(row["pair_id"], "ada", "tie", row["question"][:9000])
        store.labels.comment(row["pair_id"], "ada", row["question"][:9000])
    yield store
    store.close()


def check_inert(text):
    hidden = [character for character in STYLING.sub("", text)
              if character not in "\n" and (ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u202e\u2066\u2028\u200b\ufeff")]
    assert not hidden, hidden[:5]


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_acts_on_the_terminal(hostile, terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, highlight=False)
    print_summary(hostile, False, console)
    for row in hostile.page()[1]:
        print_pair(hostile, row["pair_id"], console)
    text = file.getvalue()
    check_inert(text)
    assert len(text) < 400_000, "long texts are cut"
    plain = STYLING.sub("", text)
    assert "[bold red]" in plain and "⟨U+001B⟩" in plain and "⟨U+202E⟩" in plain and "more characters)" in plain
    if not terminal:
        assert "\x1b" not in text


def test_json_is_ascii_and_errors_are_inert(hostile, capsys):
    print_summary(hostile, True, Console(file=io.StringIO()))
    text = capsys.readouterr().out
    check_inert(text)
    assert text.isascii() and json.loads(text)["total"] == len(NASTY)
    with pytest.raises(SystemExit) as error:
        main(["show", str(hostile.files.named), "\x1b[2J\u202e"])
    check_inert(str(error.value).replace("error: ", ""))


# ----------------------------------------------------------------------- pieces


def test_pieces():
    assert [bar(share, 4) for share in (0, 0.001, 0.5, 0.53125, 1, 2)] == ["", "▏", "██", "██▏", "████", "████"]
    assert columns([0, 1, 4, 8]) == " ▁▄█" and columns([]) == ""
    assert shown("[red]\x1b").plain == "[red]⟨U+001B⟩" and shown("abc", 2).plain == "ab … (1 more characters)" and shown(None).plain == "NULL"
    assert one_line("a\nb\r\nc").plain == "a⏎b⏎c" and one_line("x" * 70).plain == "x" * 60 + " … (10 more characters)"


@pytest.mark.parametrize(("left", "right", "differing"), [
    ("SELECT a FROM t", "select  b from t", (["a"], ["b"])),
    ("SELECT a FROM t", "SELECT a FROM t WHERE a > 1", ([], ["WHERE", "a", ">", "1"])),
    ("SELECT 'A'", "SELECT 'a'", (["'A'"], ["'a'"])),
    ("", "SELECT 1", ([], ["SELECT", "1"])),
])
def test_tokens_that_differ_are_marked(left, right, differing):
    sides = marked(left, right)
    assert tuple([part.text for part in side if part.differs and part.kind != "space"] for side in sides) == differing
    assert tuple("".join(part.text for part in side) for side in sides) == (left, right)


def test_megabytes_are_not_compared():
    left, right = marked("SELECT " + "a," * 500_000, "SELECT 1")
    assert not any(part.differs for part in left + right)


def test_the_command_starts_at_once_and_loads_no_torch(run):
    """In a second of processor time, which other processes on the machine do not change."""
    code = ("import sys, time; from preference.inspection.command import main; "
            f"main(['summary', {str(run)!r}]); print(time.process_time(), file=sys.stderr); "
            "print(*{'torch', 'transformers', 'trl', 'datasets', 'scipy', 'sqlglot', 'pandas'} & sys.modules.keys(), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(PROJECT)})
    seconds, heavy = done.stderr.splitlines()
    assert heavy == "" and float(seconds) < 1, done.stderr


@pytest.mark.parametrize("command", ["summary", "show", "serve", "label", "agreement", "apply", "export"])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0 and "RUN_OR_FILE" in capsys.readouterr().out

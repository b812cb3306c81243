"""answer: prints the query and its rows, runs nothing but one SELECT, and never writes to the database."""

import shutil
import sqlite3
import sys
from contextlib import closing

import pytest
from rich.console import Console

import sft.sampler
from preference.answer import committed, main, print_rows
from sft import ranks
from sft.artefacts import file_hash
from sft.sampler import Completion


def ask(monkeypatch, *arguments):
    """Run the entry script in this process; returns its exit status or error message."""
    # torch's threads of this process are spinning ones: two of them on a busy machine wait for each other.
    monkeypatch.setattr(ranks, "threads_per_rank", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["answer", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code


@pytest.fixture
def database(pets):
    return pets / "database" / "pets" / "pets.sqlite"


@pytest.fixture
def say(monkeypatch, pet_models, database, capsys):
    """Ask with a model that completes every prompt with a given text: (exit status, what was printed)."""

    def say(text, *more):
        completion = Completion(text, (), 0.0, 1, True)
        monkeypatch.setattr(sft.sampler, "generate", lambda *arguments, **keywords: [[completion]])
        status = ask(monkeypatch, "--model", pet_models["base"], "--database", database, *more, "a question")
        return status, capsys.readouterr().out

    return say


def test_a_trained_adapter_answers(monkeypatch, pet_models, database, capsys):
    before = file_hash(database)
    question = "Name the pets older than three, oldest first."
    assert ask(monkeypatch, "--model", pet_models["sft"], "--database", database, question) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SELECT name FROM pet WHERE age > 3 ORDER BY age DESC\n")
    assert printed.index("Cy") < printed.index("Bo") and "Ada" not in printed and "2 row(s)" in printed
    assert file_hash(database) == before and [path.name for path in database.parent.iterdir()] == ["pets.sqlite"]


def test_rows_over_the_limit_are_counted_and_not_shown(say):
    status, printed = say("SELECT name, NULL FROM pet ORDER BY name", "--rows", "2")
    assert status == 0 and "Ada" in printed and "NULL" in printed and "Cy" not in printed and "4 row(s)" in printed


def test_brackets_in_queries_and_cells_are_shown_as_they_are(say):
    status, printed = say("SELECT '[red]x[/red]' AS [bold], '[/]' AS b")
    assert (
        status == 0
        and printed.startswith("SELECT '[red]x[/red]' AS [bold], '[/]' AS b\n")
        and "[red]x[/red]" in printed
    )


def test_escape_sequences_do_not_reach_the_terminal(say):
    status, printed = say("SELECT char(27) || ']0;title' || char(7) AS a")
    assert status == 0 and "\x1b" not in printed and "\x07" not in printed and "title" in printed


@pytest.mark.parametrize("text", ["DELETE FROM pet", "SELECT 1; DROP TABLE pet", "PRAGMA user_version = 9"])
def test_anything_but_one_select_is_shown_and_not_run(say, database, text):
    before = file_hash(database)
    status, printed = say(text)
    assert status == 1 and printed.startswith(f"{text}\nnot run: ")
    assert file_hash(database) == before


def test_a_query_that_fails_says_why(say):
    status, printed = say("SELECT colour FROM pet")
    assert status == 1 and "sql_error: no such column: colour" in printed


@pytest.mark.parametrize(("text", "said"), [("UNANSWERABLE", "this schema cannot answer"), ("", "No query.")])
def test_no_query_is_said(say, text, said):
    status, printed = say(text)
    assert status == 1 and said in printed


def test_a_query_that_the_judge_counts_as_correct_is_run_as_the_judge_runs_it(say):
    status, printed = say('SELECT age FROM pet WHERE name = "Cy"')
    assert status == 0 and "run with its double-quoted values as strings: SELECT age FROM pet WHERE name = 'Cy'" in printed
    assert "1 row(s)" in printed


def test_a_long_query_and_a_wide_answer_are_whole(say):
    text = f"SELECT '{'word ' * 40}' AS a, " + ", ".join(f"'cell number {i}' AS b{i}" for i in range(30))
    status, printed = say(text)
    assert status == 0 and printed.splitlines()[0] == text
    assert all(f"cell number {i} " in printed for i in range(30)) and "…" not in printed


def test_in_a_terminal_a_row_that_is_too_wide_stands_as_lines_of_name_and_value(capsys):
    print_rows(("name", "long"), [("Ada", "x" * 100), ("Bo", "short")], Console(width=40, force_terminal=True, file=sys.stdout))
    printed = capsys.readouterr().out
    assert printed.count("x") == 100 and max(map(len, printed.splitlines())) <= 80 and "…" not in printed
    assert printed.index("row 1") < printed.index("Ada") < printed.index("row 2") < printed.index("short")


def test_nothing_is_cut_off_of_cells_and_names_of_any_width(capsys):
    piped = Console(width=80, file=sys.stdout)
    print_rows(("a",), [("x" * 30_000,)], piped)
    assert capsys.readouterr().out.count("x") == 30_000
    names = [f"column_{number:03}" for number in range(60)]
    print_rows(names, [], Console(width=80, force_terminal=True, file=sys.stdout))
    said = capsys.readouterr().out
    assert all(name in said for name in names)


def test_what_an_application_has_committed_beside_the_file_is_seen(say, database, tmp_path):
    live = tmp_path / "live pets.sqlite"
    shutil.copy(database, live)
    with closing(sqlite3.connect(live)) as writer:
        writer.execute("PRAGMA journal_mode = wal")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE pet SET name = 'Dora' WHERE name = 'Cy'")
        writer.commit()
        assert (tmp_path / "live pets.sqlite-wal").stat().st_size
        before = file_hash(live)
        status, printed = say("SELECT name FROM pet", "--database", live)
        assert status == 0 and "Dora" in printed and "Cy" not in printed
        (tmp_path / "link.sqlite").symlink_to(live)
        assert "Dora" in say("SELECT name FROM pet", "--database", tmp_path / "link.sqlite")[1]
        assert file_hash(live) == before


def test_a_database_that_is_locked_is_said(tmp_path, database):
    live = tmp_path / "pets.sqlite"
    shutil.copy(database, live)
    with closing(sqlite3.connect(live, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # so that changes go to the file, and the old pages to the journal
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("CREATE TABLE filler AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) SELECT i FROM n")
        assert (tmp_path / "pets.sqlite-journal").stat().st_size
        with pytest.raises(ValueError, match="pets.sqlite has changes beside it .*database is locked.*Close the program"):
            committed(live, tmp_path)


def test_what_is_no_database_is_refused(monkeypatch, pet_models, tmp_path):
    model = pet_models["base"]
    for missing in (tmp_path / "none.sqlite", tmp_path):
        message = ask(monkeypatch, "--model", model, "--database", missing, "q")
        assert message == f"error: --database {missing} is not a file. Name an existing SQLite file."
    (tmp_path / "text.sqlite").write_text("not a database, though it bears the name of one\n" * 100)
    message = ask(monkeypatch, "--model", model, "--database", tmp_path / "text.sqlite", "q")
    assert message.startswith("error: text.sqlite is not a readable SQLite database")


def test_a_model_that_is_not_there_is_named(monkeypatch, database):
    assert "model: there is no folder ./none" in ask(monkeypatch, "--model", "./none", "--database", database, "q")

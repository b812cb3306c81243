"""The short columns of all pairs in one table that is fast to filter, search and sort; long texts stay in their files."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import duckdb

from preference.inspection.files import columns_of, connect, first_line, identity, literal, parquet

VERSION = 3  # of the table's layout
_LARGE = 20_000  # rows from which on the index is kept on disk
_SEARCHED_CHARACTERS = 4_000
_JUDGED_CANDIDATES = 20_000
_UNUSED_S = 30 * 24 * 3600  # after which an index is deleted
TABLE = """CREATE TABLE store.pairs (
  row BIGINT, file USMALLINT, file_row BIGINT, pair_id VARCHAR, example_id VARCHAR, question VARCHAR, chosen_sql VARCHAR,
  rejected_sql VARCHAR, chosen_verdict VARCHAR, chosen_reason VARCHAR, rejected_verdict VARCHAR, rejected_reason VARCHAR,
  source VARCHAR, strategy VARCHAR, kind VARCHAR, round INTEGER, question_length INTEGER, chosen_length INTEGER,
  rejected_length INTEGER, length_difference INTEGER, chosen_logp DOUBLE, rejected_logp DOUBLE, kill_score DOUBLE,
  gold_fallback BOOLEAN, person_label VARCHAR, chosen_sample INTEGER, same_text BOOLEAN, no_prompt BOOLEAN,
  looks_cut BOOLEAN, chosen_hash UBIGINT, rejected_hash UBIGINT)"""
# What a query ends with that was cut off in mid-sentence.
_CUT = r"(?i)([,(=]| (select|from|where|and|or|by|on|join|in))$"
KIND_SEPARATOR = "\x1f"
_WHITE_SPACE = "' ' || chr(9) || chr(10) || chr(13) || chr(160)"


def open_index(connection: duckdb.DuckDBPyConnection, files, columns: list[dict[str, str]]) -> list:
    """Attach the index of `files.main` as the schema `store`, made first where there is none; things to keep alive.

    That of many rows is a file in the user's cache folder (or, where that cannot be written, a temporary one), named by
    the data files and their state; that of few is made in memory each time.
    """
    rows = connection.execute("SELECT sum(num_rows) FROM parquet_file_metadata(?)", [[str(p) for p in files.main]])
    if rows.fetchone()[0] < _LARGE:
        connection.execute("ATTACH ':memory:' AS store")
        _fill(connection, files, columns)
        return []
    names, state = identity([*files.main, *(files.verdicts if files.kind == "candidates" else [])])
    keep: list = []
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "text-to-sql-preference"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        keep.append(tempfile.TemporaryDirectory(prefix="inspect-preferences-"))
        folder = Path(keep[0].name)
    path = folder / f"{names}-{state}-{VERSION}-{duckdb.__version__}.duckdb"
    if _attached(connection, path):
        os.utime(path)
        return keep
    _make(path, files, columns)
    for old in (*folder.glob("*.duckdb"), *folder.glob(".*.duckdb.*")):  # the latter are of a process that was killed
        with suppress(OSError):
            if old != path and (old.name.startswith(names) or time.time() - old.stat().st_mtime > _UNUSED_S):
                old.unlink()
    connection.execute(f"ATTACH {literal(str(path))} AS store (READ_ONLY)")
    return keep


def _attached(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        connection.execute(f"ATTACH {literal(str(path))} AS store (READ_ONLY)")
        connection.execute("SELECT row FROM store.pairs LIMIT 1")
        return True
    except duckdb.Error:  # a damaged index is made anew
        connection.execute("DETACH DATABASE IF EXISTS store")
        path.unlink(missing_ok=True)
        return False


def _make(path: Path, files, columns: list[dict[str, str]]) -> None:
    """Write the index under another name first: another process sees it whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with connect() as connection:
            # Finding the smallest form of each column would take longer than writing them.
            connection.execute("SET force_compression = 'uncompressed'")
            connection.execute("SET preserve_insertion_order = false")  # every row carries its number
            connection.execute(f"ATTACH {literal(str(temporary))} AS store")
            _fill(connection, files, columns)
            connection.execute("DETACH store")
        os.replace(temporary, path)
    finally:
        for rest in (temporary, Path(f"{temporary}.wal")):
            rest.unlink(missing_ok=True)


def _fill(connection: duckdb.DuckDBPyConnection, files, columns: list[dict[str, str]]) -> None:
    connection.execute(TABLE)
    offset = 0
    for number, (path, types) in enumerate(zip(files.main, columns, strict=True)):
        try:
            if files.kind == "pairs":
                query = _pairs_query(path, types, number, offset)
            else:
                query = _candidates_query(connection, files, path, types, number, offset)
            connection.execute(f"INSERT INTO store.pairs {query}")
            offset += connection.execute(f"SELECT count(*) FROM {parquet(path)}").fetchone()[0]
        except duckdb.Error as error:
            raise ValueError(f"{path} is damaged: {first_line(error)}. Allowed are whole files. Copy it again, or delete "
                             "it and run its step again.") from None


def side_text(types: dict[str, str], side: str) -> str:
    """SQL for the text of one side: its query, else what its last message says."""
    said = message_text(types, side)
    if f"{side}_sql" not in types:
        return said
    own = message_text(types, f"{side}_sql")
    return f"coalesce({own}, {said})" if side in types else own


def message_text(types: dict[str, str], column: str, place: int = -1) -> str:
    """SQL for the text of a message of a column that holds messages, or for the column's own text."""
    kind = types.get(column, "")
    if not kind:
        return "NULL"
    if kind.endswith("[]") and "content" in kind:
        return f"CAST({column}[{place}].content AS VARCHAR)"
    return column if kind == "VARCHAR" else f"CAST({column} AS VARCHAR)"


def prompt_text(types: dict[str, str]) -> str:
    """SQL for what was asked: the prompt's last message, or the one before the answer where there is no prompt."""
    if "prompt" in types:
        return message_text(types, "prompt")
    if types.get("chosen", "").endswith("[]") and "content" in types["chosen"]:
        return message_text(types, "chosen", -2)
    return "NULL"


def readable(name: str, kind: str) -> str:
    """SQL for a column as Python takes it; times of a zone as text, since duckdb would need a package for them that nothing else does."""
    column = '"' + name.replace('"', '""') + '"'
    return f"CAST({column} AS VARCHAR)" if "WITH TIME ZONE" in kind else column


def identifier(types: dict[str, str]) -> str:
    """SQL for a pair's id; one made from the texts where the file has none."""
    if "pair_id" in types:
        return "coalesce(CAST(pair_id AS VARCHAR), 'row-' || file_row_number)"
    texts = " || chr(31) || ".join(
        f"coalesce({name if types[name] == 'VARCHAR' else f'CAST(to_json({name}) AS VARCHAR)'}, '')"
        for name in ("prompt", "chosen", "rejected", "chosen_sql", "rejected_sql") if name in types)
    return f"left(md5({texts}), 16)"  # an id and no secret: the hash that labels name is another


def _pairs_query(path: Path, types: dict[str, str], number: int, offset: int) -> str:
    def column(name: str, kind: str = "VARCHAR") -> str:
        if types.get(name) == kind:
            return name
        return f"TRY_CAST({name} AS {kind})" if name in types else f"CAST(NULL AS {kind})"

    kinds = types.get("kind", "")
    question = f"coalesce({column('question')}, {prompt_text(types)})" if "question" in types else prompt_text(types)
    asked = [blank(question)] + ([blank(message_text(types, "prompt"))] if "prompt" in types else [])
    return f"""
      WITH texts AS (
        SELECT file_row_number AS file_row, {identifier(types)} AS pair_id, {column('example_id')} AS example_id,
          {question} AS question, {side_text(types, 'chosen')} AS chosen_sql, {side_text(types, 'rejected')} AS rejected_sql,
          {column('chosen_verdict')} AS chosen_verdict, {column('chosen_reason')} AS chosen_reason,
          {column('rejected_verdict')} AS rejected_verdict, {column('rejected_reason')} AS rejected_reason,
          {column('source')} AS source, {column('strategy')} AS strategy,
          {"array_to_string(kind, chr(31))" if kinds.endswith("[]") else column('kind')} AS kind,
          {column('round', 'INTEGER')} AS round, {column('chosen_logp_sum', 'DOUBLE')} AS chosen_logp,
          {column('rejected_logp_sum', 'DOUBLE')} AS rejected_logp, {column('kill_score', 'DOUBLE')} AS kill_score,
          {column('gold_fallback', 'BOOLEAN')} AS gold_fallback, {column('person_label')} AS person_label,
          {column('chosen_sample_index', 'INTEGER')} AS chosen_sample, {' OR '.join(asked)} AS no_prompt
        FROM {parquet(path)})
      SELECT {offset} + file_row, {number}, file_row, pair_id, example_id, {_cut('question')}, {_cut('chosen_sql')},
        {_cut('rejected_sql')}, chosen_verdict, chosen_reason, rejected_verdict, rejected_reason, source, strategy, kind,
        round, length(question), length(chosen_sql), length(rejected_sql), length(chosen_sql) - length(rejected_sql),
        chosen_logp, rejected_logp, kill_score, gold_fallback, person_label, chosen_sample, chosen_sql = rejected_sql,
        no_prompt, coalesce(regexp_matches(chosen_sql, {literal(_CUT)}), false),
        hash(asked, hash(chosen_sql)), hash(asked, hash(rejected_sql))
      FROM (SELECT *, hash({'coalesce(example_id, question)' if 'example_id' in types else 'question'}) AS asked FROM texts)"""


def blank(text: str) -> str:
    """SQL for whether a text is missing or only white space; longer ones are not looked through, which would take seconds."""
    return f"CASE WHEN strlen({text}) > 16 THEN false ELSE coalesce(trim({text}, {_WHITE_SPACE}) = '', true) END"


def _cut(name: str) -> str:
    """SQL for a text short enough for a list; the rest can be read on the pair's own page."""
    return f"CASE WHEN strlen({name}) > {_SEARCHED_CHARACTERS} THEN left({name}, {_SEARCHED_CHARACTERS}) ELSE {name} END"


def _candidates_query(connection, files, path: Path, types: dict[str, str], number: int, offset: int) -> str:
    """Samples as rows with one side; their verdicts and questions are joined where the run has them."""
    def column(name: str, kind: str = "VARCHAR") -> str:
        return f"TRY_CAST(c.{name} AS {kind})" if name in types else f"CAST(NULL AS {kind})"

    sql = f"coalesce({column('sql')}, {column('completion')})"
    connection.execute("CREATE OR REPLACE TEMP TABLE judged (example_id VARCHAR, sql VARCHAR, verdict VARCHAR,"
                       " reason VARCHAR, kill_score DOUBLE)")
    if files.verdicts:
        _judge_candidates(connection, files, path, sql)
    connection.execute("CREATE OR REPLACE TEMP TABLE asked (example_id VARCHAR, question VARCHAR, source VARCHAR,"
                       " kind VARCHAR)")
    for examples in files.examples:
        try:
            found = columns_of(connection, examples)
            if {"example_id", "question", "source", "kind"} <= found.keys():
                connection.execute("INSERT INTO asked SELECT example_id, question, source, array_to_string(kind, chr(31)) "
                                   f"FROM {parquet(examples)}")
        except (ValueError, duckdb.Error) as error:
            files.warnings.append(f"questions are not shown: {first_line(error)}")
    return f"""
      SELECT {offset} + file_row_number, {number}, file_row_number,
        coalesce(c.example_id, '') || ':' || coalesce({column('sample_index', 'BIGINT')}, file_row_number),
        c.example_id, {_cut('a.question')}, {_cut(sql)}, NULL, j.verdict, j.reason, NULL, NULL, a.source, NULL, a.kind,
        {column('round', 'INTEGER')}, length(a.question), length({sql}), NULL, NULL, {column('logp_sum', 'DOUBLE')}, NULL,
        j.kill_score, NULL, NULL, {column('sample_index', 'INTEGER')}, false, false,
        NOT coalesce({column('ended_with_eos', 'BOOLEAN')}, true), hash(hash(c.example_id), hash({sql})), NULL
      FROM {parquet(path)} c
      LEFT JOIN (SELECT DISTINCT ON (example_id) * FROM asked) a ON a.example_id = c.example_id
      LEFT JOIN judged j ON j.example_id = c.example_id AND j.sql IS NOT DISTINCT FROM {sql}
      ORDER BY file_row_number"""


def _judge_candidates(connection, files, path: Path, sql: str) -> None:
    """Fill `judged` with the verdict of each distinct query, found by its canonical form as preference.pairs does."""
    try:
        rows = connection.execute(f"SELECT DISTINCT c.example_id, {sql} FROM {parquet(path)} c "
                                  f"LIMIT {_JUDGED_CANDIDATES + 1}").fetchall()
        if len(rows) > _JUDGED_CANDIDATES:
            files.warnings.append(f"more than {_JUDGED_CANDIDATES:,} distinct queries: verdicts are on each question's page")
            return
        from reward.queries import canonical_sql

        verdicts = {}
        for file in files.verdicts:
            verdicts |= {row[:2]: row[2:] for row in connection.execute(
                f"SELECT example_id, canonical_sql, verdict, reason, kill_score FROM {parquet(file)}").fetchall()}
        found = [(example_id, text, *verdict) for example_id, text in rows
                 if (verdict := verdicts.get((example_id, canonical_sql(text or ""))) or verdicts.get((example_id, None)))]
        if found:
            lists = ", ".join(f"unnest(?::{kind}[])" for kind in ("VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "DOUBLE"))
            connection.execute(f"INSERT INTO judged SELECT {lists}", list(map(list, zip(*found, strict=True))))
    except duckdb.Error as error:
        files.warnings.append(f"verdicts are not shown: {first_line(error)}")

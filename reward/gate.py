"""The text gate before the worker: lets one statement through that may be a SELECT, and says why others stop here."""

import re
from typing import NamedTuple

from reward.tokens import tokenize

MAX_SQL_CHARACTERS = 100_000

# Statements that SQLite knows and that are no query. EXPLAIN and REINDEX never reach SQLite's authorizer.
_OTHER_STATEMENTS = frozenset(
    "ALTER ANALYZE ATTACH BEGIN COMMIT CREATE DELETE DETACH DROP END EXPLAIN INSERT PRAGMA REINDEX RELEASE REPLACE"
    " ROLLBACK SAVEPOINT UPDATE VACUUM".split()
)
_SPACE = " \t\n\f\r\ufeff"
# The common case at once: ASCII, every quote closed, and neither semicolon nor comment outside quotes. Without possessive
# quantifiers, which Python 3.11.2 gets wrong: what stands between two runs of ordinary characters never begins like them,
# so that nothing is tried twice.
_PLAIN = re.compile(
    r"""(?i:SELECT|WITH|VALUES)(?![A-Za-z0-9_$])
        [^;'"`\[\x00/-]*
        (?: (?: '[^']*' | "[^"]*" | `[^`]*` | \[[^\]]*\] | -(?!-) | /(?!\*) ) [^;'"`\[\x00/-]* )*""",
    re.VERBOSE,
)


class Gated(NamedTuple):
    """`sql`: the statement without what surrounds it, or None; then `reason` (refused or sql_error) and `message`."""

    sql: str | None
    reason: str | None = None
    message: str | None = None


def gate(sql: str, max_characters: int = MAX_SQL_CHARACTERS) -> Gated:
    """Lets through one statement that starts with SELECT, WITH or VALUES; a trailing semicolon is dropped."""
    if len(sql) > max_characters:
        return Gated(None, "sql_error", f"{len(sql)} characters; at most {max_characters} are accepted")
    stripped = sql.strip(_SPACE).rstrip(_SPACE + ";")
    if sql.isascii() and "\0" not in sql and _PLAIN.fullmatch(stripped):
        return Gated(stripped)
    return gate_by_tokens(sql)


def gate_by_tokens(sql: str) -> Gated:
    """The same for any text: what `gate` asks when the text is not one of the common plain ones."""
    if "\0" in sql:
        return Gated(None, "sql_error", "NUL character in the statement")
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        return Gated(None, "sql_error", f"text that UTF-8 cannot hold at character {error.start}")
    tokens = tokenize(sql)
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    if not tokens:
        return Gated(None, "sql_error", "no statement")
    for token in tokens:
        if token.kind == "bad":
            return Gated(None, "sql_error", f"{token.text} at character {token.start} is never closed")
        if token.text == ";":
            return Gated(None, "refused", "more than one statement")
    first = tokens[0].upper
    if first in _OTHER_STATEMENTS:
        return Gated(None, "refused", f"{first} is no SELECT")
    if first not in ("SELECT", "WITH", "VALUES"):
        return Gated(None, "sql_error", f"starts with {tokens[0].text[:40]!r}; a query starts with SELECT or WITH")
    return Gated(sql[tokens[0].start : tokens[-1].end])

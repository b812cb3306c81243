"""What holds for all queries and all rows: found by hypothesis, not by hand."""

import threading

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlglot import exp
from sqlglot.optimizer.normalize import normalize
from sqlglot.optimizer.simplify import simplify

from reward.compare import Denotation, compare, same_cell, unmatched
from reward.judge import Judge
from reward.queries import canonical_sql, normalise_gold, parse
from reward.tokens import tokenize

DDL = (
    "CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, age INT, country TEXT);"
    "CREATE TABLE concert (concert_id INT, singer_id INT REFERENCES singer(singer_id), year INT, hall TEXT)"
)
SLOW = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def judge():
    with Judge(tidy=1, near=1, attempts=4) as found:
        yield found


def conditions(prefix: str) -> st.SearchStrategy[str]:
    number = st.integers(18, 40).map(str)
    text = st.sampled_from(("'France'", "'Japan'", "'o''Brien'", '"Peru"'))
    atoms = st.one_of(
        st.builds(f"{prefix}age {{}} {{}}".format, st.sampled_from(("=", "<", ">", "<=", ">=", "<>")), number),
        st.builds(f"{prefix}country {{}} {{}}".format, st.sampled_from(("=", "<>")), text),
        st.builds(f"{prefix}age BETWEEN {{}} AND {{}}".format, number, number),
        st.builds(f"{prefix}country IN ({{}}, {{}})".format, text, text),
        st.builds(f"{prefix}name LIKE '{{}}%'".format, st.sampled_from("abc")),
        st.just(f"{prefix}age IS NULL"),
    )
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.builds("({} AND {})".format, inner, inner),
            st.builds("({} OR {})".format, inner, inner),
            st.builds("NOT ({})".format, inner),
        ),
        max_leaves=4,
    )


QUERIES = st.one_of(
    st.builds("SELECT name, age FROM singer WHERE {}".format, conditions("")),
    st.builds("SELECT name FROM singer WHERE {} ORDER BY age DESC LIMIT 2".format, conditions("")),
    st.builds("SELECT DISTINCT country FROM singer WHERE {} ORDER BY country".format, conditions("")),
    st.builds("SELECT country, COUNT(*) FROM singer WHERE {} GROUP BY country".format, conditions("")),
    st.builds(
        "SELECT s.name, c.year FROM singer AS s JOIN concert AS c ON s.singer_id = c.singer_id WHERE {}".format,
        conditions("s."),
    ),
    st.builds(
        "SELECT name FROM singer WHERE {} AND singer_id IN (SELECT singer_id FROM concert)".format, conditions("")
    ),
)


def verdicts(judge: Judge, gold: str, candidates: list[str]) -> list[tuple[str, str]]:
    line = judge.question({"id": 1, "gold": gold, "candidates": candidates, "context": DDL})
    assume(line["gold"]["status"] == "ok")
    return [(verdict["verdict"], verdict["reason"]) for verdict in line["verdicts"]]


def rewritten(sql: str) -> list[str]:
    """What sqlglot holds to be equal, and both sides of every AND, OR and inner join of two tables exchanged."""
    swapped = parse(sql)
    for node in reversed(list(swapped.find_all(exp.And, exp.Or))):
        node.replace(type(node)(this=node.expression.copy(), expression=node.this.copy()))
    for join in swapped.find_all(exp.Join):
        source = join.parent.args["from_"]
        first, second = source.this.copy(), join.this.copy()
        source.set("this", second)
        join.set("this", first)
    trees = [swapped, simplify(parse(sql)), normalize(parse(sql)), normalize(parse(sql), dnf=True)]
    return [tree.sql(dialect="sqlite") for tree in trees]


@given(gold=QUERIES)
@SLOW
def test_a_query_equals_itself_and_no_rewrite_of_it_is_wrong(judge, gold):
    # sqlglot moves a value to the left of =, and there a double-quoted one would be a name.
    candidates = [gold, f"{gold} ;", canonical_sql(gold), *rewritten(normalise_gold(gold, DDL))]
    found = verdicts(judge, gold, candidates)
    assert found[:2] in ([("correct", "equal")] * 2, [("unclear", "gold_empty")] * 2)
    assert not [pair for pair in zip(candidates, found) if pair[1][0] == "wrong"]


@given(gold=QUERIES, others=st.lists(QUERIES, min_size=1, max_size=5), order=st.randoms(use_true_random=False))
@SLOW
def test_verdicts_do_not_depend_on_the_batch_or_its_order(judge, gold, others, order):
    candidates = [gold, "SELECT oops FROM singer", *others, *others]
    together = verdicts(judge, gold, candidates)
    alone = [verdicts(judge, gold, [candidate])[0] for candidate in candidates]
    shuffled = list(enumerate(candidates))
    order.shuffle(shuffled)
    mixed = verdicts(judge, gold, [candidate for _, candidate in shuffled])
    assert together == alone == [pair for _, pair in sorted(zip([place for place, _ in shuffled], mixed))]


def test_verdicts_do_not_depend_on_load_or_the_number_of_workers():
    golds = [f"SELECT name FROM singer WHERE age {sign} {age}" for sign in "<>" for age in (20, 30)]
    tasks = [{"id": gold, "gold": gold, "candidates": golds, "context": DDL} for gold in golds]
    with Judge() as alone:
        expected = list(alone.stream(tasks))
    ended = threading.Event()

    def burn() -> None:
        while not ended.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=burn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with Judge(workers=2) as loaded:
            assert list(loaded.stream(tasks)) == expected
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@given(gold=QUERIES, candidate=QUERIES, quotes=st.sampled_from(('""', "``", "[]")), upper=st.booleans())
@SLOW
def test_equal_canonical_texts_get_equal_verdicts(judge, gold, candidate, quotes, upper):
    written = candidate
    for token in reversed(tokenize(candidate)):
        if token.text in ("name", "age", "country", "singer", "concert", "year"):
            name = token.text.upper() if upper else token.text
            written = written[: token.start] + quotes[0] + name + quotes[1] + written[token.end :]
    candidates = [candidate, canonical_sql(candidate), written.replace(" WHERE", "\n/* all */ where")]
    assert len({canonical_sql(text) for text in candidates}) == 1
    assert len(set(verdicts(judge, gold, candidates))) == 1


CELLS = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.sampled_from((2**53, 2**53 + 1, float(2**53), 0.1 + 0.2, 0.3, 1.0, -0.0, float("inf"), 1e-9)),
    st.floats(allow_nan=False, width=16),
    st.sampled_from(("", "a", "A", "1", "None")),
    st.sampled_from((b"", b"a", b"1")),
)
ROWS = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=8))


def bag(rows: list[tuple]) -> Denotation:
    return Denotation(len(rows[0]), [rows], 0, len(rows), False)


@given(left=CELLS, right=CELLS)
@settings(deadline=None)
def test_equality_of_cells_is_reflexive_and_symmetric(left, right):
    assert same_cell(left, left) and same_cell(left, right) == same_cell(right, left)


@given(rows=ROWS, order=st.randoms(use_true_random=False), splits=st.lists(st.booleans(), min_size=8, max_size=8))
@settings(deadline=None)
def test_comparison_is_reflexive(rows, order, splits):
    shuffled = order.sample(rows, len(rows))
    assert compare(bag(rows), len(rows[0]), shuffled) is None
    assert unmatched(rows, shuffled) == ([], [])
    groups: list[list[tuple]] = []
    for row, split in zip(rows, splits):
        if split or not groups:
            groups.append([])
        groups[-1].append(row)
    ordered = Denotation(len(rows[0]), groups, 0, len(rows), True)
    assert compare(ordered, len(rows[0]), ordered.rows()) is None
    # Any valid cut: the rows of each group in another order.
    turned = [row for group in groups for row in order.sample(group, len(group))]
    assert compare(ordered, len(rows[0]), turned) is None
    begin = order.randrange(len(rows))
    cut = Denotation(len(rows[0]), groups, begin, order.randint(begin, len(rows)), True)
    assert compare(cut, len(rows[0]), turned[cut.start : cut.stop]) is None
    assert compare(ordered, len(rows[0]), shuffled) in (None, "order")


@given(left=ROWS, right=ROWS)
@settings(deadline=None)
def test_comparison_of_bags_is_symmetric(left, right):
    forth, back = compare(bag(left), len(right[0]), right), compare(bag(right), len(left[0]), left)
    assert forth == back
    missing, extra = unmatched(left, right)
    assert len(left) - len(missing) == len(right) - len(extra)

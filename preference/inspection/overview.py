"""All pairs at a glance: counts, distributions, and flags on what would spoil training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

from preference.inspection.contents import kinds
from preference.inspection.files import first_line, parquet
from preference.inspection.index import blank

if TYPE_CHECKING:
    from preference.inspection.store import Store

LOW_KILL_SCORE = 0.7
CONTROLS = ("flipped", "shuffled-rejected", "random-sides")  # as preference.controls ends the name of the strategy
LENGTH_BINS = 24
KILL_BINS = 10
_BIAS_SHARE = 0.65  # of the pairs whose sides differ in length, the share from which on one side counts as the longer
_BIAS_MEAN = 0.1  # of the mean length
_MANY_PAIRS = 20  # of one question
_OUTLIER_RANGES = 6  # interquartile ranges below the median
_COUNTED = ("chosen_verdict", "chosen_reason", "rejected_verdict", "rejected_reason", "source", "strategy", "kind", "round",
            "person_label")


def make_overview(store: Store) -> dict:
    """{"total", "kind", "questions", "counts": {column: [(value, n)]}, "judged": [(verdict, reason, n)], "dropped":
    [(reason, n)], "length", "lengths", "differences", "kill_scores", "problems": {name: n}, "labels", "flags",
    "warnings"}; histograms are {"edges", counts by name}. What the files do not have is missing or empty.
    """
    overview = {"path": str(store.files.named), "total": store.total, "kind": store.kind,
                "counts": {name: found for name in _COUNTED if (found := _count(store, name))},
                "judged": _side_counts(store, store.files.verdicts, ("verdict", "reason")),
                "dropped": _side_counts(store, store.files.dropped, ("reason",))}
    overview |= _measures(store)
    overview |= {"lengths": _length_histogram(store, overview["length"]),
                 "differences": _difference_histogram(store), "kill_scores": _kill_histogram(store),
                 "labels": _labels(store), "warnings": list(store.warnings)}
    if store.kind == "candidates":
        overview["one_sided"] = _one_sided(store)
    else:
        overview["one_sided"] = {name: n for name, n in overview["dropped"] if name in ("no_wrong_sample", "no_correct_sample")}
    return overview | {"flags": make_flags(overview)}


def _count(store: Store, column: str) -> list[tuple]:
    rows = store.rows(f"SELECT {column} AS value, count(*) AS n FROM store.pairs WHERE {column} IS NOT NULL GROUP BY ALL "
                      "ORDER BY n DESC, value LIMIT 500")
    if column != "kind":
        return [(row["value"], row["n"]) for row in rows]
    found: dict[str, int] = {}
    for row in rows:
        for value in kinds(row["value"]):
            found[value] = found.get(value, 0) + row["n"]
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def _side_counts(store: Store, files: list, columns: tuple[str, ...]) -> list[tuple]:
    """Counts of a file beside the pairs; a file that cannot be read is a warning."""
    found: dict[tuple, int] = {}
    for path in files:
        try:
            for row in store.rows(f"SELECT {', '.join(columns)}, count(*) AS n FROM {parquet(path)} GROUP BY ALL"):
                key = tuple(row[column] for column in columns)
                found[key] = found.get(key, 0) + row["n"]
        except duckdb.Error as error:
            store.warnings.append(f"{path} is not shown: {first_line(error)}")
    return [(*key, n) for key, n in sorted(found.items(), key=lambda item: (-item[1], str(item[0])))]


def _measures(store: Store) -> dict:
    """Lengths and counts of problems, in one pass over the index and a few more over its hashes."""
    [row] = store.rows(f"""
      SELECT avg(chosen_length) AS chosen_mean, avg(rejected_length) AS rejected_mean,
        approx_quantile(chosen_length, 0.5) AS chosen_median, approx_quantile(rejected_length, 0.5) AS rejected_median,
        max(chosen_length) AS chosen_longest, max(rejected_length) AS rejected_longest,
        count(*) FILTER (length_difference > 0) AS chosen_longer, count(*) FILTER (length_difference < 0) AS rejected_longer,
        count(*) FILTER (same_text) AS same_text, count(*) FILTER (no_prompt) AS no_prompt,
        count(*) FILTER (looks_cut) AS looks_cut, count(*) FILTER (gold_fallback) AS gold_fallback,
        count(*) FILTER (kill_score < {LOW_KILL_SCORE}) AS low_kill_score,
        count(*) FILTER ({blank('chosen_sql')}) AS empty_chosen, count(*) FILTER ({blank('rejected_sql')}) AS empty_rejected,
        count(*) FILTER ((chosen_verdict <> 'correct' OR rejected_verdict <> 'wrong') AND person_label IS NULL
          AND coalesce(strategy, '') NOT LIKE '%-graded') AS odd_verdict,
        count(*) FILTER (regexp_matches(strategy, '-({"|".join(CONTROLS)})$')) AS control
      FROM store.pairs""")
    problems = {name: row[name] for name in ("same_text", "no_prompt", "looks_cut", "gold_fallback", "low_kill_score",
                                             "empty_chosen", "empty_rejected", "odd_verdict", "control")}
    [most] = store.rows("SELECT count(*) AS questions, coalesce(max(n), 0) AS n, arg_max(asked, n) AS asked FROM (SELECT coalesce(example_id, "
                        "question) AS asked, count(*) AS n FROM store.pairs GROUP BY 1)")
    problems["most_of_a_question"], problems["duplicates"] = most["n"], _repeated(store)
    if store.kind == "candidates":
        for name in ("empty_rejected", "odd_verdict", "duplicates", "most_of_a_question"):
            problems[name] = 0
    else:
        # A text that wins in one pair and loses against the same other text in another teaches nothing.
        [flips] = store.rows("SELECT count(*) AS n FROM store.pairs WHERE NOT same_text AND hash(chosen_hash, rejected_hash) IN "
                             "(SELECT hash(rejected_hash, chosen_hash) FROM store.pairs WHERE NOT same_text)")
        [both] = store.rows("SELECT count(*) AS n FROM store.pairs WHERE NOT same_text AND chosen_hash IN (SELECT rejected_hash "
                            "FROM store.pairs WHERE NOT same_text)")
        problems |= {"opposite": flips["n"], "both_sides": max(0, both["n"] - flips["n"]), "unfinished": _unfinished(store)}
    problems["logp_outliers"] = _outliers(store)
    length = {name: row[name] for name in ("chosen_mean", "rejected_mean", "chosen_median", "rejected_median",
                                           "chosen_longest", "rejected_longest", "chosen_longer", "rejected_longer")}
    return {"questions": most["questions"], "most_pairs_question": most["asked"], "length": length, "problems": problems}


def _repeated(store: Store) -> int:
    """Rows whose question and texts stood in an earlier row already."""
    [row] = store.rows("SELECT count(*) - count(DISTINCT hash(chosen_hash, rejected_hash)) AS n FROM store.pairs")
    return row["n"]


def _unfinished(store: Store) -> int:
    """Pairs of which the chosen sample did not end with EOS, by the run's candidates."""
    total = 0
    for number, pairs in enumerate(store.files.main):
        for path in store.files.candidates:
            if path.parent == pairs.parent:
                try:
                    total += store.rows(
                        f"SELECT count(*) AS n FROM store.pairs p JOIN {parquet(path)} c ON p.example_id = c.example_id AND "
                        f"p.chosen_sample = c.sample_index WHERE p.file = {number} AND NOT c.ended_with_eos")[0]["n"]
                except duckdb.Error as error:
                    store.warnings.append(f"{path} is not used: {first_line(error)}")
    return total


def _outliers(store: Store) -> int:
    """Pairs with a log-probability that the sampling model cannot have given, or that is far from all others.

    Compared are nats per character (of texts below 20 per 20); far is more than six interquartile ranges below the median.
    """
    total = set()
    for side in ("chosen", "rejected"):
        share = f"{side}_logp / greatest({side}_length, 20)"
        [row] = store.rows(f"SELECT count({side}_logp) AS n, quantile_cont({share}, [0.25, 0.5, 0.75]) AS q FROM (FROM "
                           f"store.pairs WHERE isfinite({side}_logp))")
        impossible = f"{side}_logp > 1e-3 OR NOT isfinite({side}_logp)"
        if row["n"] >= 20 and row["q"][2] > row["q"][0]:
            low, median, high = row["q"]
            impossible += f" OR {share} < {median - _OUTLIER_RANGES * (high - low)!r}"
        total |= {found["row"] for found in store.rows(f"SELECT row FROM store.pairs WHERE {impossible}")}
    return len(total)


def _length_histogram(store: Store, length: dict) -> dict:
    """Characters of both sides in equal steps up to the longest that is not extreme; the last step holds all above."""
    sides = [side for side in ("chosen", "rejected") if length[f"{side}_longest"]]
    if not sides:
        return {}
    [row] = store.rows("SELECT quantile_disc(greatest(chosen_length, coalesce(rejected_length, 0)), 0.99) AS n "
                       "FROM store.pairs")
    step = max(1, -(-(row["n"] or 1) // LENGTH_BINS))
    found = {"edges": [step * index for index in range(LENGTH_BINS + 1)]}
    for side in sides:
        counts = {row["bin"]: row["n"] for row in store.rows(
            f"SELECT least({side}_length // {step}, {LENGTH_BINS - 1}) AS bin, count(*) AS n FROM store.pairs "
            f"WHERE {side}_length IS NOT NULL GROUP BY 1")}
        found[side] = [counts.get(index, 0) for index in range(LENGTH_BINS)]
    return found


def _difference_histogram(store: Store) -> dict:
    """Chosen less rejected in characters, in equal steps around 0; the outermost steps hold all beyond."""
    [row] = store.rows("SELECT quantile_disc(abs(length_difference), 0.95) AS n FROM store.pairs")
    if row["n"] is None:
        return {}
    half = LENGTH_BINS // 2
    step = max(1, -(-row["n"] // half))
    counts = {row["bin"]: row["n"] for row in store.rows(
        f"SELECT greatest(-{half}, least({half}, CAST(round(length_difference / {step}) AS INTEGER))) AS bin, count(*) AS n "
        "FROM store.pairs WHERE length_difference IS NOT NULL GROUP BY 1")}
    places = range(-half, half + 1)
    return {"centres": [step * place for place in places], "counts": [counts.get(place, 0) for place in places]}


def _kill_histogram(store: Store) -> dict:
    counts = {row["bin"]: row["n"] for row in store.rows(
        f"SELECT CAST(least(floor(kill_score * {KILL_BINS}), {KILL_BINS - 1}) AS INTEGER) AS bin, count(*) AS n "
        "FROM store.pairs WHERE kill_score BETWEEN 0 AND 1 GROUP BY 1")}
    if not counts:
        return {}
    return {"edges": [index / KILL_BINS for index in range(KILL_BINS + 1)],
            "counts": [counts.get(index, 0) for index in range(KILL_BINS)],
            "missing": store.total - sum(counts.values())}


def _one_sided(store: Store) -> dict:
    """Questions whose samples are all right or all wrong, and so can give no pair."""
    [row] = store.rows("""SELECT count(*) FILTER (good AND NOT bad) AS no_wrong_sample, count(*) FILTER (bad AND NOT good) AS
      no_correct_sample FROM (SELECT example_id, bool_or(chosen_verdict = 'correct') AS good, bool_or(chosen_verdict = 'wrong')
      AS bad FROM store.pairs WHERE chosen_verdict IS NOT NULL GROUP BY 1)""")
    return {name: n for name, n in row.items() if n}


def _labels(store: Store) -> dict:
    """{"labelled": pairs, "by_label": [(label, words)], "by_annotator": [(name, words)]}."""
    found = dict(store.facets()["labelled"])
    try:
        words = [label for labels in store.labels.latest().values() for label in labels.values()]
    except ValueError:
        words = []
    by_label, by_annotator = {}, {}
    for word in words:
        by_label[word.label] = by_label.get(word.label, 0) + 1
        by_annotator[word.annotator] = by_annotator.get(word.annotator, 0) + 1
    return {"labelled": found["yes"], "by_label": sorted(by_label.items(), key=lambda item: -item[1]),
            "by_annotator": sorted(by_annotator.items(), key=lambda item: -item[1])}


# What stands in a flag for one, and for several.
_ONE = {"s": "", "es": "s", "have": "has", "are": "is", "were": "was", "them": "it", "they": "it counts", "queries": "query"}
_MANY = {"s": "s", "es": "", "have": "have", "are": "are", "were": "were", "them": "them", "they": "they count",
         "queries": "queries"}


def make_flags(overview: dict) -> list[dict]:
    """What would spoil training, worst first: {"level": error or warning, "name", "count", "text"}."""
    problems, length, total = overview["problems"], overview["length"], overview["total"]
    flags = []

    def flag(level: str, name: str, text: str, count: int | None = None) -> None:
        count = problems.get(name, 0) if count is None else count
        if count:
            words = _ONE if count == 1 else _MANY
            flags.append({"level": level, "name": name, "count": count, "text": text.format(n=count, **words)})

    noun = "pair{s}" if overview["kind"] == "pairs" else "sample{s}"
    flag("error", "no_rows", f"there are no {noun.format(**_MANY)} at all", int(total == 0))
    flag("error", "same_text", "{n:,} pair{s} {have} the same text on both sides: nothing to learn, and a loss that cannot fall")
    flag("error", "opposite", "{n:,} pair{s} stand{es} in the other direction too: what one teaches the other takes back")
    flag("error", "odd_verdict", "{n:,} pair{s} {are} not `correct` against `wrong`, and no person said so: the judge does not "
                                 "stand behind {them}")
    flag("error", "no_prompt", "{n:,} prompt{s} {are} empty: the answer is trained without its question")
    flag("error", "empty_chosen", "{n:,} " + ("chosen text{s} {are} empty: the model would learn to say nothing"
                                             if overview["kind"] == "pairs" else "sample{s} {are} empty"))
    flag("error", "unfinished", "{n:,} chosen sample{s} did not end by themselves (no EOS): the model would learn to stop there")
    flag("warning", "looks_cut", "{n:,} " + ("chosen {queries} look{es} cut off in the middle" if overview["kind"] == "pairs"
                                            else "sample{s} did not end by themselves (no EOS)"))
    flag("warning", "empty_rejected", "{n:,} rejected text{s} {are} empty: too easy to tell apart")
    flag("warning", "both_sides", "{n:,} pair{s} choose{es} a text that another pair of the same question rejects")
    flag("warning", "duplicates", "{n:,} pair{s} repeat{es} the question and both texts of another: {they} more than once")
    flag("warning", "low_kill_score", f"{{n:,}} {noun} rest{{es}} on weak databases (kill score below {LOW_KILL_SCORE}): a wrong "
                                      "query may have passed as correct")
    flag("warning", "control", "{n:,} pair{s} {are} of a control arm (flipped, shuffled or random sides, as the strategy says): "
                               "for comparison, not for a model that is used")
    flag("warning", "gold_fallback", "{n:,} pair{s} {have} the gold query as chosen, not a sample of the model: off-policy")
    flag("warning", "logp_outliers", "{n:,} pair{s} {have} a log-probability that is impossible or far from all others: another "
                                     "model may have sampled {them}")
    longer, shorter = length["chosen_longer"], length["rejected_longer"]
    means = (length["chosen_mean"] or 0, length["rejected_mean"] or 0)
    if longer + shorter >= 10 and min(means) > 0:
        share = max(longer, shorter) / (longer + shorter)
        if share >= _BIAS_SHARE and abs(means[0] - means[1]) >= _BIAS_MEAN * min(means):
            flag("warning", "length_bias", f"length bias: the {'chosen' if longer > shorter else 'rejected'} side is longer in "
                 f"{share:.0%} of the pairs that differ in length (mean {means[0]:.0f} characters chosen, {means[1]:.0f} "
                 "rejected): the model may learn length instead of correctness", max(longer, shorter))
    most, questions = problems["most_of_a_question"], overview["questions"]
    if most > _MANY_PAIRS and most > 5 * total / max(1, questions):
        flag("warning", "most_of_a_question", "one question has {n:,} pairs ("
             f"{total / max(1, questions):.1f} on average): it weighs that much more")
    for name, what in (("no_wrong_sample", "only right"), ("no_correct_sample", "only wrong")):
        flag("warning", name, f"{{n:,}} question{{s}} {{have}} {what} samples and give{{es}} no pair",
             overview["one_sided"].get(name, 0))
    for reason, count in overview["dropped"]:
        if reason not in ("no_wrong_sample", "no_correct_sample") and count:
            written = str(reason).replace("{", "{{").replace("}", "}}")  # a file may hold any text
            flag("warning", f"dropped_{reason}", f"{{n:,}} question{{s}} {{were}} dropped: {written}", count)
    return flags

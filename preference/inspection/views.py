"""The pages that only read: overview, list, pair, question, and the parts that are fetched on their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from preference.inspection.pages import written
from preference.inspection.selection import ROWS_A_PAGE
from preference.inspection.sides import CHOICES, label_words, letters, stored_label
from preference.report_page.text import embeddable, percent, visible

OVERVIEW_WAIT_S = 1.0
ANSWER_WAIT_S = 1.5  # after it a pair's page comes without the results, which follow
POLL_WAIT_S = 10.0
EVIDENCE = ("example_id", "source", "kind", "strategy", "round", "seed", "kill_score", "gold_fallback", "weight", "margin", "database",
            "checkpoint_hash", "prompt_hash", "suite_hash", "pair_id", "person_label")
EVIDENCE_WORDS = {"logp_sum": "Log-probability, nats", "tokens_round_trip": "Text encodes to the sampled tokens",
                  "gold_fallback": "Gold stands in as chosen", "person_label": "People's word, as applied"}
TELLING = ("person_label", "gold_fallback")  # which side was chosen
SIDE_EVIDENCE = ("verdict", "reason", "sample_index", "logp_sum", "tokens_round_trip", "result_hash")


def overview(site, request: Request) -> Response:
    """Counts of the whole file, what would spoil training first."""
    store = site.store
    counted = site.in_background(("overview", store.labels.version()), lambda: _counted(store), OVERVIEW_WAIT_S)
    return site.page(request, "overview.jinja", here="overview", counted=counted, total=store.total,
                     **({} if counted is None else _overview_lines(counted)))


def pairs(site, request: Request) -> Response:
    """One page of the list."""
    store, selection = site.store, site.selection(request)
    facets = store.facets()
    total, rows = store.page(**selection.arguments(), offset=selection.page * ROWS_A_PAGE, limit=ROWS_A_PAGE)
    annotator, latest = site.annotator(request), site.latest_labels()
    for row in rows:
        row["letters"] = letters(row["pair_id"], annotator, site.blind)
        mine = latest.get(row["pair_id"], {}).get(annotator)
        if mine and mine.content_hash != row["pair_id"]:  # whether the label means these texts, the texts must tell
            mine = store.pair(row["pair_id"])["labels"].get(annotator)
        row["my_label"] = label_words(mine.label, row["letters"]) if mine else None
    return site.page(request, "list.jinja", here="list", selection=selection, list_query=selection.query(), facets=facets,
                     total=total, of=store.total, rows=rows, note=_note(site, request, "", annotator),
                     shows={"verdict": bool(facets["verdict"]), "kind": bool(facets["kind"]), "source": len(facets["source"]) > 1},
                     pages=max(1, -(-total // ROWS_A_PAGE)), first=selection.page * ROWS_A_PAGE)


def pair(site, request: Request) -> Response:
    """One pair with everything that is known of it."""
    return pair_page(site, request, site.pair(request))


def pair_page(site, request: Request, row: dict, edited: Mapping[str, str] | None = None) -> Response:
    """The page of a pair; `edited` holds the text of each side ("gold", "chosen", "rejected") as a person typed it."""
    store, selection, annotator = site.store, site.selection(request), site.annotator(request)
    by_letter = letters(row["pair_id"], annotator, site.blind)
    if edited is None:
        found = site.in_background(("pair", row["pair_id"]), lambda: run(row), ANSWER_WAIT_S)
    else:
        found = site.in_background(("edited", row["pair_id"], *sorted(edited.items())),
                                   lambda: run(row, edited), 60.0)
    previous, following = store.neighbours(row["pair_id"], **selection.arguments())
    if found is not None and edited is None and following and site.is_idle():
        site.in_background(("pair", following), lambda: run(store.pair(following)), 0)  # ready when the person gets there
    question = store.question(row["example_id"]) if row.get("example_id") is not None else None
    return site.page(
        request, "pair.jinja", here="list", list_query=selection.query(), selection=selection, pair=row, pair_id=row["pair_id"],
        sides=[_side(site, row, letter, side, edited) for letter, side in by_letter.items()],
        gold={"sql": row.get("gold_sql"), "typed": (edited or {}).get("gold")},
        found=_shown_results(found, by_letter, site.blind), edited=edited is not None, previous=previous, following=following,
        schema=_drawn(row.get("context"), found["schema"] if found else [], row.get("gold_sql"), row["chosen_sql"], row["rejected_sql"]),
        candidates=question["queries"] if question else [], evidence=[(name, row[name]) for name in EVIDENCE if row.get(name) is not None
                                                    and not (site.blind and name in TELLING)],
        mine=row["labels"].get(annotator), stored={choice: stored_label(choice, by_letter) for choice, _, _ in CHOICES},
        said=_said(site, row, annotator, by_letter), note=_note(site, request, row["pair_id"], annotator),
    )


def results(site, request: Request) -> Response:
    """The result tables alone, for a page that was sent before they were ready."""
    row = site.pair(request)
    found = site.in_background(("pair", row["pair_id"]), lambda: run(row), POLL_WAIT_S)
    if found is None:
        return Response(status_code=202)
    shown = _shown_results(found, letters(row["pair_id"], site.annotator(request), site.blind), site.blind)
    return site.page(request, "results.jinja", found=shown)


def question(site, request: Request) -> Response:
    """All distinct queries of a question, to be ranked."""
    example_id, annotator = request.query_params.get("id", ""), site.annotator(request)
    found = site.store.question(example_id)
    if found["example"] is None and not found["queries"]:
        raise HTTPException(404, f"This file holds no question {example_id[:80]!r}. Open one from a pair's page.")
    example, ranks = found["example"] or {}, found["rankings"].get(annotator, {})
    candidates = [{**query, "number": number, "key": query_key(query["canonical_sql"]), "rank": ranks.get(query["canonical_sql"])}
                  for number, query in enumerate(found["queries"], start=1)]
    candidates.sort(key=lambda candidate: (candidate["rank"] or float("inf"), candidate["number"]))
    return site.page(request, "question.jinja", here="list", example_id=example_id, question=example, candidates=candidates,
                     pairs=found["pairs"], problems=found["warnings"], saved="saved" in request.query_params and ranks,
                     schema=_drawn(example.get("context"), [], example.get("gold_sql"), *(query["sql"] for query in found["queries"])))


def whole_text(site, request: Request) -> Response:
    """A text that is too long for its page, as plain text with hidden characters written out."""
    row, field = site.pair(request), request.query_params.get("field", "")
    by_letter = letters(row["pair_id"], site.annotator(request), site.blind)
    column = {"question": "question", "context": "context", "gold": "gold_sql", "a": f"{by_letter['A']}_sql",
              "b": f"{by_letter['B']}_sql"}.get(field)
    if column is None or not isinstance(row.get(column), str):
        raise HTTPException(404, f"The pair has no text {field[:40]!r}. Allowed are question, context, gold, a and b.")
    return PlainTextResponse(visible(row[column]).encode("utf-8", "replace"))


def keys(site, request: Request) -> Response:
    return site.page(request, "keys.jinja")


def static(site, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in site.static:
        raise HTTPException(404, f"There is no file {name[:80]!r}.")
    content, kind = site.static[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "max-age=31536000, immutable"})


def run(row: dict, edited: Mapping[str, str] | None = None) -> dict:
    """The results on every database, and the schema of the database itself where the pair has none as text."""
    from preference.inspection import rerun

    found = rerun.run_pair(row, dict(edited) if edited else None)
    return found | {"schema": [] if row.get("context") else rerun.schema_of(row)["tables"]}


def query_key(canonical_sql: str | None) -> str:
    """What a form calls a query."""
    return hashlib.sha256((canonical_sql or "").encode("utf-8", "replace")).hexdigest()[:16]


def _drawn(context: str | None, described: list[dict], *queries: str | None) -> Markup | None:
    """The schema's drawing: of its text, else of what the database itself says; None where neither can be read."""
    from preference.inspection.pages import schema_drawing  # sqlglot takes a while, and the server should start at once

    tables = schema_drawing.read_tables(context) or schema_drawing.described(described)
    return schema_drawing.draw(tables, schema_drawing.mentioned(*queries)) if tables else None


def _counted(store) -> dict:
    """The overview, with the agreement where people have said something."""
    counted = store.overview()
    if counted["labels"]["labelled"]:
        from preference.inspection.agreement import measure_agreement  # scipy takes a second

        counted["agreement"] = measure_agreement(store)
    return counted


def _overview_lines(counted: dict) -> dict:
    """What of the overview is put into words."""
    problems = counted["problems"]
    named = {"duplicates": "Repeated pairs", "gold_fallback": "Gold stands in as chosen", "same_text": "Same text on both sides",
             "opposite": "Stand in both directions", "both_sides": "Chosen here, rejected there", "no_prompt": "Without a prompt",
             "low_kill_score": "Weak databases", "looks_cut": "Look cut off", "logp_outliers": "Odd log-probabilities"}
    facts = [(words, problems.get(name, 0)) for name, words in named.items()]
    facts += [(words, counted["one_sided"].get(name, 0)) for name, words in
              (("no_wrong_sample", "Questions with only right samples"), ("no_correct_sample", "Questions with only wrong samples"))]
    same = {label: words for label, words in ((stored_label(choice, {"A": "chosen", "B": "rejected"}), words.replace(" A", " chosen")
                                               .replace(" B", " rejected")) for choice, _, words in CHOICES)}
    return {
        "facts": [(words, count) for words, count in facts if count], "said": [(same.get(label, label), count) for label, count in counted["labels"]["by_label"]],
        "verdicts": [(f"{side}: {verdict}", count) for side in ("chosen", "rejected")
                     for verdict, count in counted["counts"].get(f"{side}_verdict", [])],
        "judged": [(f"{verdict}: {reason}" if reason else verdict, count) for verdict, reason, count in counted["judged"]],
        "bin_labels": lambda edges: [f"{low:g} to {high:g}" for low, high in pairwise(edges)], "agreement": _agreement_lines(counted["agreement"]) if "agreement" in counted else [],
    }


def _agreement_lines(found: dict) -> list[tuple[str, float, str]]:
    """(who agrees with whom, share, the same in words with its interval)."""
    entries = [("people, executor", found["executor"])]
    entries += [(f"{name}, executor", entry) for name, entry in found["annotators"].items() if len(found["annotators"]) > 1]
    entries += [(f"{left}, {right}", entry) for left, right, entry in found["between"]]
    entries += [(f"where {reason} differ" if reason in ("rows", "columns") else f"where it is {reason}", entry)
                for reason, entry in found["reasons"].items() if len(found["reasons"]) > 1]
    lines = []
    for name, entry in entries:
        if entry["n"]:
            low, high = entry["share_interval"]
            kappa = "" if entry["kappa"] is None else f", κ {entry['kappa']:.2f}"
            lines.append((name, entry["share"], f"{percent(entry['share'])} of {entry['n']:,} ({100 * low:.0f} to {100 * high:.0f}){kappa}"))
    return lines


def _side(site, row: dict, letter: str, side: str, edited: Mapping[str, str] | None) -> dict:
    """What the page shows of one side; in blind mode nothing that the executor said."""
    hidden = ("verdict", "reason", "result_hash") if site.blind else ()
    return {
        "letter": letter, "key": letter.lower(), "side": "" if site.blind else side, "sql": row.get(f"{side}_sql"),
        "text": row.get(f"{side}_text"), "typed": (edited or {}).get(side),
        "verdict": None if site.blind else row.get(f"{side}_verdict"), "reason": None if site.blind else row.get(f"{side}_reason"),
        "trace": None if site.blind else _trace(row.get(f"{side}_trace")),
        "evidence": [(name, row[f"{side}_{name}"]) for name in SIDE_EVIDENCE
                     if name not in hidden and row.get(f"{side}_{name}") is not None],
    }


def _trace(found: dict | None) -> object:
    """What the judge noted, without what stands beside it."""
    return embeddable({name: value for name, value in (found or {}).items() if name != "result_hash"})


def _shown_results(found: dict | None, by_letter: Mapping[str, str], blind: bool) -> dict | None:
    """Results with A and B for chosen and rejected. Blind: rows are marked that A and B do not share, and gold has no say."""
    if found is None:
        return None
    databases = []
    for database in found["databases"]:
        tables = [{"title": "Gold", **database["tables"]["gold"]}] if database["tables"]["gold"]["status"] != "none" else []
        for letter, side in by_letter.items():
            title = letter if blind else f"{letter} · {side}"
            tables.append({"title": title, **database["tables"][side]})
        if blind:
            *gold, a, b = tables
            a["differs"], b["differs"] = written.rows_apart(a["rows"], b["rows"]), written.rows_apart(b["rows"], a["rows"])
            for table in gold:
                table["differs"] = [False] * len(table["rows"])
            for table in tables:
                table["missing"], table["difference"] = 0, None
        databases.append({**database, "tables": tables, "open": False})
    opened = next((database for database in databases if database["told_apart"]), databases[0] if databases else None)
    if opened:
        opened["open"] = True
    message = found["message"]
    if blind and message:  # "rejected makes no databases" would tell
        message = "; ".join(part for part in message.split("; ") if "chosen" not in part and "rejected" not in part)
    return {"databases": databases, "message": message}


def _said(site, row: dict, annotator: str, by_letter: Mapping[str, str]) -> list[dict]:
    """Labels and comments on a pair; in blind mode only one's own."""
    said = [{"annotator": label.annotator, "words": label_words(label.label, by_letter), "comment": label.comment, "time": label.time}
            for label in row["labels"].values()]
    said += [{**comment, "words": "Comment"} for comment in row["comments"]]
    return sorted((entry for entry in said if not site.blind or entry["annotator"] == annotator), key=lambda entry: entry["time"])


def _note(site, request: Request, pair_id: str, annotator: str) -> dict | None:
    """What the last deed did, as the label file has it now."""
    after = request.query_params.get("after")
    if after and (label := site.labels.of(after).get(annotator)):
        return {"words": f"Saved: {label_words(label.label, letters(after, annotator, site.blind))}", "pair_id": after}
    if "undone" in request.query_params:
        mine = site.labels.of(pair_id).get(annotator)
        return {"words": "Undone. " + ("Your earlier label holds again." if mine else "You have no label on this pair."), "pair_id": None}
    return None

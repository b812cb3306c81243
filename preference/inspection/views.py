"""The pages that only read: overview, list, pair, question, and the parts that are fetched on their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from preference.inspection.pages import overview_lines
from preference.inspection.pages.result_tables import result_tables
from preference.inspection.question import question_hash
from preference.inspection.selection import ROWS_A_PAGE
from preference.inspection.sides import CHOICES, label_words, letters, stored_label
from preference.report_page.text import embeddable, visible

OVERVIEW_WAIT_S = 1.0
ANSWER_WAIT_S = 1.5  # after it a pair's page comes without the results, which follow
POLL_WAIT_S = 10.0
TYPED_WAIT_S = 60.0
EVIDENCE = ("example_id", "source", "kind", "strategy", "round", "seed", "kill_score", "gold_fallback", "weight", "margin",
            "database", "checkpoint_hash", "prompt_hash", "suite_hash", "pair_id", "person_label")
EVIDENCE_WORDS = {"logp_sum": "Log-probability, nats", "tokens_round_trip": "Text encodes to the sampled tokens",
                  "gold_fallback": "Gold stands in as chosen", "person_label": "People's word, as applied"}
TELLING = ("person_label", "gold_fallback")  # which side was chosen
SIDE_EVIDENCE = ("verdict", "reason", "sample_index", "logp_sum", "tokens_round_trip", "result_hash")


def overview(site, request: Request) -> Response:
    """Counts of the whole file, what would spoil training first."""
    store = site.store
    counted = site.in_background(("overview", site.labels_version()), lambda: overview_lines.count(store), OVERVIEW_WAIT_S)
    return site.page(request, "overview.jinja", here="overview", counted=counted, total=store.total,
                     **({} if counted is None else overview_lines.lines(counted)))


def pairs(site, request: Request) -> Response:
    """One page of the list."""
    store, selection = site.store, site.selection(request)
    facets = store.facets()
    total, rows = store.page(**selection.arguments(), offset=selection.page * ROWS_A_PAGE, limit=ROWS_A_PAGE)
    annotator = site.annotator(request)
    mine = site.labels_of(annotator, [row["pair_id"] for row in rows])
    for row in rows:
        row["letters"] = letters(row["pair_id"], annotator, site.blind)
        label = mine.get(row["pair_id"])
        row["my_label"] = label_words(label.label, row["letters"]) if label else None
    shows = {"verdict": bool(facets["verdict"]), "kind": bool(facets["kind"]), "source": len(facets["source"]) > 1}
    return site.page(request, "list.jinja", here="list", selection=selection, list_query=selection.query(), facets=facets,
                     shows=shows, rows=rows, total=total, of=store.total, first=selection.page * ROWS_A_PAGE,
                     pages=max(1, -(-total // ROWS_A_PAGE)), note=_note(site, request, "", annotator))


def pair(site, request: Request) -> Response:
    """One pair with everything that is known of it; of a sample, its question."""
    if site.store.kind == "candidates":
        return RedirectResponse("/question?" + urlencode({"id": site.pair(request)["example_id"] or ""}), 303)
    return pair_page(site, request, site.pair(request))


def pair_page(site, request: Request, row: dict, edited: Mapping[str, str] | None = None) -> Response:
    """The page of a pair; `edited` holds the text of each side ("gold", "chosen", "rejected") as a person typed it."""
    store, selection, annotator = site.store, site.selection(request), site.annotator(request)
    by_letter = letters(row["pair_id"], annotator, site.blind)
    if edited is None:
        found = site.in_background(("pair", row["pair_id"]), lambda: run(row), ANSWER_WAIT_S)
    else:
        key = ("edited", row["pair_id"], *sorted(edited.items()))
        found = site.in_background(key, lambda: run(row, edited), TYPED_WAIT_S)
    previous, following = store.neighbours(row["pair_id"], **selection.arguments())
    if found is not None and edited is None and following and site.is_idle():  # ready when the person gets there
        site.in_background(("pair", following), lambda: run(store.pair(following)), 0)
    question = store.question(row["example_id"]) if row.get("example_id") is not None else None
    hidden = TELLING if site.blind else ()
    return site.page(
        request, "pair.jinja", here="list", list_query=selection.query(), selection=selection, pair=row,
        pair_id=row["pair_id"], previous=previous, following=following, edited=edited is not None,
        sides=[_side(site, row, letter, side, edited) for letter, side in by_letter.items()],
        gold={"sql": row.get("gold_sql"), "typed": (edited or {}).get("gold")},
        found=result_tables(found, by_letter, site.blind),
        schema=_drawn(row.get("context"), found["schema"] if found else [],
                      row.get("gold_sql"), row["chosen_sql"], row["rejected_sql"]),
        candidates=question["queries"] if question else [],
        evidence=[(name, row[name]) for name in EVIDENCE if row.get(name) not in (None, []) and name not in hidden],
        mine=row["labels"].get(annotator), stored={choice: stored_label(choice, by_letter) for choice, _, _ in CHOICES},
        said=_said(site, row, annotator, by_letter), note=_note(site, request, row["pair_id"], annotator),
    )


def results(site, request: Request) -> Response:
    """The result tables alone, for a page that was sent before they were ready."""
    row = site.pair(request)
    found = site.in_background(("pair", row["pair_id"]), lambda: run(row), POLL_WAIT_S)
    if found is None:
        return Response(status_code=202)
    shown = result_tables(found, letters(row["pair_id"], site.annotator(request), site.blind), site.blind)
    return site.page(request, "results.jinja", found=shown)


def question(site, request: Request) -> Response:
    """All distinct queries of a question, to be ranked."""
    example_id, annotator = request.query_params.get("id", ""), site.annotator(request)
    found = site.store.question(example_id)
    if found["example"] is None and not found["queries"]:
        raise HTTPException(404, f"This file holds no question {example_id[:80]!r}. Open one from a pair's page.")
    example, ranks = found["example"] or {}, found["rankings"].get(annotator, {})
    candidates = [{**query, "number": number, "key": query_key(query["canonical_sql"]),
                   "rank": ranks.get(query["canonical_sql"])} for number, query in enumerate(found["queries"], start=1)]
    candidates.sort(key=lambda candidate: (candidate["rank"] or float("inf"), candidate["number"]))
    queries = [query["sql"] for query in found["queries"]]
    return site.page(request, "question.jinja", here="list", example_id=example_id, question=example,
                     candidates=candidates, pairs=found["pairs"], problems=found["warnings"],
                     saved="saved" in request.query_params and ranks, content_hash=question_hash(found["example"]),
                     schema=_drawn(example.get("context"), [], example.get("gold_sql"), *queries))


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

    tables = schema_drawing.read_tables(context if isinstance(context, str) else None) or schema_drawing.described(described)
    return schema_drawing.draw(tables, schema_drawing.mentioned(*queries)) if tables else None


def _side(site, row: dict, letter: str, side: str, edited: Mapping[str, str] | None) -> dict:
    """What the page shows of one side; in blind mode nothing that the executor said."""
    hidden = ("verdict", "reason", "trace", "result_hash") if site.blind else ()
    known = {name: row[f"{side}_{name}"] for name in (*SIDE_EVIDENCE, "trace")
             if name not in hidden and row.get(f"{side}_{name}") is not None}
    return {
        "letter": letter, "key": letter.lower(), "side": "" if site.blind else side, "sql": row.get(f"{side}_sql"),
        "typed": (edited or {}).get(side), "verdict": known.get("verdict"), "reason": known.get("reason"),
        "trace": _trace(known.pop("trace", None)), "evidence": list(known.items()),
    }


def _trace(found: dict | None) -> object:
    """What the judge noted, without what stands beside it."""
    return embeddable({name: value for name, value in (found or {}).items() if name != "result_hash"})


def _said(site, row: dict, annotator: str, by_letter: Mapping[str, str]) -> list[dict]:
    """Labels and comments on a pair; in blind mode only one's own."""
    said = [label._asdict() | {"words": label_words(label.label, by_letter)} for label in row["labels"].values()]
    said += [{**comment, "words": "Comment"} for comment in row["comments"]]
    if site.blind:
        said = [entry for entry in said if entry["annotator"] == annotator]
    return sorted(said, key=lambda entry: entry["time"])


def _note(site, request: Request, pair_id: str, annotator: str) -> dict | None:
    """What the last deed did, as the label file has it now."""
    after = request.query_params.get("after")
    if after and (label := site.labels.of(after).get(annotator)):
        return {"words": f"Saved: {label_words(label.label, letters(after, annotator, site.blind))}", "pair_id": after}
    if "undone" in request.query_params:
        mine = site.labels.of(pair_id).get(annotator)
        words = "Your earlier label holds again." if mine else "You have no label on this pair."
        return {"words": f"Undone. {words}", "pair_id": None}
    return None

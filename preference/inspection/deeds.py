"""What changes something: labels, comments, undo, ranks, the annotator's name, colours; and running what was typed."""

from __future__ import annotations

from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from preference.inspection import views
from preference.inspection.question import question_hash
from preference.inspection.sides import letters, stored_label
from reward.gate import MAX_SQL_CHARACTERS

YEAR_S = 365 * 24 * 3600


def label(site, request: Request) -> Response:
    """Save a label, on disk before the answer, and go to the next pair of the list."""
    form, selection = request.state.form, site.selection(request)
    row, annotator = _labelled_pair(site, request), _annotator(site, request)
    choice = form.get("label", "")
    # The next one is looked for before the label is there: a list of unlabelled pairs would lose this one.
    _, following = site.store.neighbours(row["pair_id"], **selection.arguments())
    stored = stored_label(choice, letters(row["pair_id"], annotator, site.blind))
    label_id = site.labels.add(row["pair_id"], annotator, stored, form.get("comment", "").strip(), row["content_hash"])
    target = selection.query(id=following, after=row["pair_id"])
    address = f"/pair?{target}" if following else f"/list?{target}"
    return _done(request, address, {"saved": label_id, "label": choice if site.blind else stored, "next": following})


def comment(site, request: Request) -> Response:
    """Save a comment without a label."""
    row, annotator = _labelled_pair(site, request), _annotator(site, request)
    words = request.state.form.get("comment", "").strip()
    if not words:
        raise HTTPException(400, "The comment is empty. Write some words first.")
    comment_id = site.labels.comment(row["pair_id"], annotator, words, row["content_hash"])
    return _done(request, f"/pair?{site.selection(request).query(id=row['pair_id'])}#said", {"saved": comment_id})


def undo(site, request: Request) -> Response:
    """Take back the annotator's newest label and show its pair."""
    undone = site.labels.undo(_annotator(site, request))
    selection = site.selection(request)
    if undone is None:
        raise HTTPException(409, "There is no label of yours to take back.")
    if site.store.pair(undone.pair_id) is None:
        address = f"/list?{selection.query()}"
    else:
        address = f"/pair?{selection.query(id=undone.pair_id, undone=1)}"
    return _done(request, address, {"undone": undone.label_id, "pair_id": undone.pair_id})


def run(site, request: Request) -> Response:
    """Run typed queries in the sandbox; nothing is saved."""
    row, form = site.pair(request), request.state.form
    by_letter = letters(row["pair_id"], _annotator(site, request), site.blind)
    typed = {"gold": form.get("gold"), by_letter["A"]: form.get("a"), by_letter["B"]: form.get("b")}
    edited = {side: text.replace("\r\n", "\n") for side, text in typed.items() if text is not None}
    for text in edited.values():
        if len(text) > MAX_SQL_CHARACTERS:
            raise HTTPException(413, f"A query has {len(text):,} characters; at most {MAX_SQL_CHARACTERS:,} are run. "
                                     "Shorten it.")
    return views.pair_page(site, request, row, edited)


def rank(site, request: Request) -> Response:
    """Save the order of a question's candidates: fields `rank-KEY`, places from 1 (best), ties allowed."""
    form, example_id = request.state.form, request.query_params.get("id", "")
    found = site.store.question(example_id)
    queries = found["queries"]
    if not queries:
        raise HTTPException(410, "This question is no longer in the file, which was written anew. No order was saved.")
    ranks, known = {}, {views.query_key(query["canonical_sql"]): query["canonical_sql"] for query in queries}
    for field, value in form.items():
        if not field.startswith("rank-") or not value.strip():
            continue
        if (query := known.get(field.removeprefix("rank-"), known)) is known:
            raise HTTPException(409, "The candidates changed since the page was opened. No order was saved. Reload and rank "
                                     "again.")
        if not (value.isdecimal() and len(value) < 5):
            raise HTTPException(400, f"The place {value[:20]!r} is none. Allowed are whole numbers from 1, the same one for a "
                                     "tie.")
        if query is not None:
            ranks[query] = int(value)
    asked = question_hash(found["example"])
    if form.get("content_hash", asked) != asked:
        raise HTTPException(409, "The question changed since the page was opened. No order was saved. Reload and rank again.")
    ranking_id = site.labels.rank(example_id, _annotator(site, request), ranks, asked)
    address = f"/question?id={quote(example_id, safe='')}&saved=1"
    return _done(request, address, {"saved": ranking_id, "ranks": len(ranks)})


def annotator(site, request: Request) -> Response:
    """Remember in this browser who is labelling."""
    name = request.state.form.get("name", "").strip()
    if not (0 < len(name) <= 64 and name.isprintable()):
        raise HTTPException(400, f"The name {name[:60]!r} cannot be used. Allowed are 1 to 64 printable characters. Choose "
                                 "another.")
    response = _done(request, _local(request.state.form.get("return", "/")), {"annotator": name})
    response.set_cookie("annotator", quote(name), max_age=YEAR_S, httponly=True, samesite="strict")
    return response


def theme(site, request: Request) -> Response:
    """Remember in this browser light, dark, or as the system has it."""
    wanted = request.state.form.get("theme", "")
    response = _done(request, _local(request.state.form.get("return", "/")), {"theme": wanted})
    if wanted in ("light", "dark"):
        response.set_cookie("theme", wanted, max_age=YEAR_S, httponly=True, samesite="strict")
    else:
        response.delete_cookie("theme", httponly=True, samesite="strict")
    return response


def _labelled_pair(site, request: Request) -> dict:
    """The pair that a form is about, as the person saw it. Raises HTTPException where it is another by now."""
    store = site.store
    if store.kind == "candidates":
        raise HTTPException(400, "This file holds samples, not pairs. Labels are for pairs; rank the samples on their "
                                 "question's page.")
    row = store.pair(request.query_params.get("id", ""))
    if row is None:
        raise HTTPException(410, "This pair is no longer in the file, which was written anew since the page was opened. "
                                 "Nothing was saved. Open a pair from the list.")
    if request.state.form.get("content_hash", row["content_hash"]) != row["content_hash"]:
        raise HTTPException(409, "This pair's texts changed since the page was opened. Nothing was saved. Reload the page and "
                                 "look again.")
    return row


def _annotator(site, request: Request) -> str:
    """Who filled in the form: the name that its page was made for, which in blind mode also decided what A is."""
    return request.state.form.get("annotator", "").strip() or site.annotator(request)


def _done(request: Request, address: str, answer: dict) -> Response:
    """Where to go on, or for a script what was done."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse(answer)
    return RedirectResponse(address, 303)


def _local(address: str) -> str:
    """An address of this server to go back to; anything else becomes the start page."""
    if not address.startswith("/") or address.startswith(("//", "/\\")):
        return "/"
    return quote(address, safe="/?=&%+~.-_:,;@!$'()*")

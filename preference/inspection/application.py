"""The inspection page as an ASGI application: what its views share, and how they are reached."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from preference.inspection import contents, deeds, sides, views
from preference.inspection.guard import Guard, cookie_name, is_open
from preference.inspection.labels import Label, LabelFile
from preference.inspection.pages import plots, written
from preference.inspection.selection import Selection
from preference.inspection.store import open_store
from preference.report_page import text

PAGES = Path(__file__).parent / "pages"
STATIC = {"style.css": "text/css", "keys.js": "text/javascript", "ranking.js": "text/javascript",
          "icon.svg": "image/svg+xml"}
KEPT_ANSWERS = 64  # of queries that were run and of counted overviews
KEY_HELP = [
    *((f"{key.upper()} {number}", words) for number, (_, key, words) in enumerate(sides.CHOICES, start=1)),
    ("C", "Write a comment; it is saved with the label"), ("U", "Undo your last label"),
    ("N →", "Next pair"), ("P ←", "Previous pair"), ("E", "Edit the queries"), ("R", "Run the edited queries"),
    ("/", "Search"), ("L", "List"), ("O", "Overview"), ("M", "Light, dark or as the system"), ("?", "This help"),
]


class Site:
    """What the views need: pairs, labels, who is labelling, templates, and queries that run in the background."""

    def __init__(self, path: Path, *, annotator: str, blind: bool):
        self.path, self.default_annotator, self.blind = Path(path), annotator, blind
        self._store = open_store(self.path)
        self._opened = self._state()
        self._labels_seen: tuple = ((), {})
        self._meant: dict[Label, Label | None] = {}
        self._lock = Lock()
        self.labels = LabelFile(self._store.labels_path)
        self._queries = ThreadPoolExecutor(2, thread_name_prefix="queries")  # the overview and a pair
        self._answers: OrderedDict[tuple, Future] = OrderedDict()
        self._queries.submit(self._store.facets)  # the first list then finds them counted
        self.static = {name: ((PAGES / name).read_bytes(), kind) for name, kind in STATIC.items()}
        self.environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined,
                                       trim_blocks=True, lstrip_blocks=True)
        self.environment.filters |= {"shown": written.shown, "sql": written.sql, "cell": written.cell,
                                     "plain": written.plain}
        self.environment.globals |= {
            "plots": plots, "blind": blind, "choices": sides.CHOICES, "key_help": KEY_HELP, "letters": sides.letters,
            "label": text.label, "quantity": text.quantity, "evidence_words": views.EVIDENCE_WORDS,
            "longest_shown": written.LONGEST_SHOWN,
            "version": hashlib.sha256(b"".join(content for content, _ in self.static.values())).hexdigest()[:12],
        }

    def close(self) -> None:
        self._queries.shutdown(wait=False, cancel_futures=True)
        self.labels.close()

    @property
    def store(self):
        """The pairs as the file holds them now: a file that was written anew is opened anew."""
        with self._lock:
            if (state := self._state()) != self._opened:
                self._store, self._opened = open_store(self.path), state  # a request may still read the old one
                self._answers.clear()
                self._meant.clear()
            return self._store

    def _state(self) -> list[tuple]:
        """What changes when a data file is written anew."""
        found = []
        for file in self._store.files.original:
            try:
                status = file.stat()
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                found.append(())
        return found

    def labels_version(self) -> tuple:
        """Changes whenever a label does; () for a file that is no label file, of which the store's warnings tell."""
        try:
            return self.labels.version()
        except ValueError:
            return ()

    def labels_of(self, annotator: str, pair_ids: list[str]) -> dict[str, Label]:
        """The annotator's labels on these pairs, as words on the sides as they stand now.

        A label whose hash is the pair's id needs no look at the texts; the others are looked up together, once.
        """
        version, store = self.labels_version(), self.store
        if self._labels_seen[0] != version:
            self._labels_seen = version, self.labels.latest() if version else {}
        found = {pair_id: label for pair_id in pair_ids
                 if (label := self._labels_seen[1].get(pair_id, {}).get(annotator))}
        unsure = [pair_id for pair_id, label in found.items() if label.content_hash != pair_id]
        unseen = [pair_id for pair_id in unsure if found[pair_id] not in self._meant]
        for pair in contents.pairs_named(store, unseen, texts_only=True):
            label = found[pair["pair_id"]]
            self._meant[label] = contents.labels_for(pair, {annotator: label}).get(annotator)
        found |= {pair_id: self._meant.get(found[pair_id]) for pair_id in unsure}
        return {pair_id: label for pair_id, label in found.items() if label is not None}

    def annotator(self, request: Request) -> str:
        """The name that this browser set, or the server's."""
        name = unquote(request.cookies.get("annotator", "")).strip()
        return name if 0 < len(name) <= 64 and name.isprintable() else self.default_annotator

    def selection(self, request: Request) -> Selection:
        return Selection.read(request.query_params, self.blind)

    def pair(self, request: Request) -> dict:
        """The pair that a request names. Raises HTTPException 400 or 404."""
        pair_id = request.query_params.get("id", "")
        if not pair_id:
            raise HTTPException(400, "The address names no pair. Open one from the list.")
        pair = self.store.pair(pair_id)
        if pair is None:
            raise HTTPException(404, f"This file holds no pair {pair_id[:80]!r}. It may have been written anew since the page "
                                     "was opened; labels that you gave are kept. Open a pair from the list.")
        return pair

    def in_background(self, key: tuple, work: Callable[[], object], wait_s: float) -> object | None:
        """What `work` gives, kept for a while; None where it has not ended after wait_s and goes on."""
        with self._lock:
            future = self._answers.get(key)
            if future is None or (future.done() and future.exception() is not None):
                if sum(not kept.done() for kept in self._answers.values()) >= KEPT_ANSWERS:
                    raise HTTPException(503, "Too many queries are waiting. Try again in a moment.")
                future = self._answers[key] = self._queries.submit(work)
                while len(self._answers) > KEPT_ANSWERS:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(key)
        try:
            return future.result(timeout=wait_s)
        except TimeoutError:
            return None

    def is_idle(self) -> bool:
        """Whether no query is running or waiting."""
        with self._lock:
            return all(future.done() for future in self._answers.values())

    def page(self, request: Request, template: str, status: int = 200, **values: object) -> Response:
        """A template as the answer to a request."""
        theme = request.cookies.get("theme", "")
        # Where the forms of the header go back to: an answer to a POST has no address that can be opened.
        back = request.url.path if request.method == "GET" else {"/run": "/pair"}.get(request.url.path, "/list")
        whole = {
            "name": self.path.name or str(self.path), "kind": self._store.kind, "warnings": self._store.warnings,
            "csrf": request.state.csrf, "theme": theme if theme in ("light", "dark") else "",
            "annotator": self.annotator(request), "here": "", "list_query": "", "signed_in": True,
            "address": f"{back}?{request.url.query}" if request.url.query else back, **values,
        }
        content = self.environment.get_template(template).render(whole)
        return Response(content.encode("utf-8", "replace"), status, media_type="text/html; charset=utf-8")

    def error(self, request: Request, status: int, message: str, signed_in: bool = True) -> Response:
        """A refusal or failure in words, as a page or, where a script asks for it, as JSON.

        Whoever is not let in learns neither the file's name nor the token of its forms.
        """
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"error": message}, status)
        hidden = {} if signed_in else {"signed_in": False, "name": "Inspect preferences", "csrf": ""}
        template = "login.jinja" if status == 401 else "error.jinja"
        return self.page(request, template, status, title=HTTPStatus(status).phrase, message=message, warnings=[],
                         **hidden)


def make_application(path: Path, *, host: str = "127.0.0.1", annotator: str = "", token: str | None = None,
                     blind: bool = False) -> Guard:
    """The application for a run's folder or file, behind its guard; `.site` holds its state.

    Raises ValueError where there is no preference file.
    """
    site = Site(path, annotator=annotator.strip() or "anonymous", blind=blind)

    async def refuse(scope: dict, status: int, message: str) -> Response:
        return site.error(Request(scope), status, message, signed_in=False)

    async def log_in(request: Request) -> Response:
        session = await guard.log_in(request.state.form.get("token", ""))
        if session is None:
            return site.error(request, 401, "That is not the token.", signed_in=False)
        response = RedirectResponse("/", 303)
        response.set_cookie(cookie_name(request.headers), session, httponly=True, samesite="strict")
        return response

    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            let_in = guard.token is None or not is_open(request.url.path)
            return site.error(request, error.status_code, str(error.detail), let_in)
        if isinstance(error, ValueError):  # three parts for a person: a filter, a label, a file
            return site.error(request, 400, str(error))
        return site.error(request, 500, "This page failed, which is a fault of the tool. Labels that were saved are safe. "
                                        "The terminal where the server runs shows the details.")

    get = [("/", views.overview), ("/list", views.pairs), ("/pair", views.pair), ("/results", views.results),
           ("/question", views.question), ("/text", views.whole_text), ("/keys", views.keys),
           ("/static/{name}", views.static)]
    post = [("/label", deeds.label), ("/comment", deeds.comment), ("/undo", deeds.undo), ("/run", deeds.run),
            ("/rank", deeds.rank), ("/annotator", deeds.annotator), ("/theme", deeds.theme)]
    routes = [Route(address, partial(view, site), methods=["GET"]) for address, view in get]
    routes += [Route(address, partial(deed, site), methods=["POST"]) for address, deed in post]
    routes.append(Route("/login", log_in, methods=["POST"]))
    application = Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, ValueError, Exception), failed))
    guard = Guard(application, host=host, token=token, refuse=refuse)
    guard.site = site
    return guard

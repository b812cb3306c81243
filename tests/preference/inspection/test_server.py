"""The inspection server: what its pages say, what they save, and whom they refuse."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from preference.inspection import application, server, views
from preference.inspection.sides import CHOICES, letters, stored_label

PROJECT = Path(__file__).parents[3]
HOSTILE_SQL = PROJECT.parent / "shared" / "data" / "reward" / "hostile.jsonl"
ADDRESS = "http://127.0.0.1:7861"
HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "{{ 7 * 7 }}{% raw %}",
    "SELECT '\u202egpj.exe\u202c' \x07\x1b[31m \u200b",
    "</textarea></pre></bdi><a href='javascript:window.harmed=1' autofocus onfocus='window.harmed=1'>x",
    '" onmouseover="window.harmed = 1" x="',
    "x" * 1_000_000,
    "\u05d0\u05d1\u05d2 SELECT \u0627\u0628",
]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Pages wait for their results, however busy the machine is."""
    monkeypatch.setattr(views, "ANSWER_WAIT_S", 60)
    monkeypatch.setattr(views, "OVERVIEW_WAIT_S", 60)


@pytest.fixture
def run_folder(clinic_run, tmp_path):
    """A copy of the run, with its own database, that a test may change."""
    folder = Path(shutil.copytree(clinic_run, tmp_path / "run"))
    path = folder / "round-1" / "pairs.parquet"
    rows = pq.read_table(path)
    moved = [row | {"database": str(folder / "clinic.sqlite")} for row in rows.to_pylist()]
    pq.write_table(pa.Table.from_pylist(moved, schema=rows.schema), path)
    return folder


@pytest.fixture
def open_client():
    """Opens clients of a path; the applications are closed after the test."""
    opened = []

    def open_one(path, address=ADDRESS, **options):
        made = application.make_application(Path(path), annotator="ada", **options)
        opened.append(made)
        client = TestClient(made, base_url=address, raise_server_exceptions=False, follow_redirects=False)
        client.guard = made
        return client

    yield open_one
    for made in opened:
        made.site.close()


@pytest.fixture
def client(open_client, run_folder):
    return open_client(run_folder)


def pair_ids(client, query="") -> list[str]:
    """Ids on one page of the list, in its order."""
    page = client.get(f"/list?{query}")
    assert page.status_code == 200, page.text
    found = re.findall(r'<td class="question-cell"[^>]*><a href="/pair\?([^"]*)"', page.text)
    return [urllib.parse.parse_qs(unescape(address))["id"][0] for address in found]


def send(client, address, **fields):
    """A form as the page sends it."""
    return client.post(address, data={"csrf": client.guard.csrf, **fields}, headers={"Origin": str(client.base_url).rstrip("/")})


def stored(folder) -> list[tuple]:
    """The labels that hold, as another process finds them on disk."""
    with closing(sqlite3.connect(f"file:{folder}/labels.sqlite?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT pair_id, annotator, label, comment FROM labels WHERE undone IS NULL ORDER BY label_id").fetchall()


def text_of(page: str) -> str:
    """What a page shows, without markup."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def write_pairs(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# ------------------------------------------------------------------ reading


def test_every_page_says_what_it_should(client):
    overview = text_of(client.get("/").text)
    assert "pairs of 12 questions" in overview
    assert "Why the rejected side is wrong" in overview and "Kill score" in overview and "Labels so far" in overview
    listed = client.get("/list").text
    assert "Which pets have never visited a vet?" in unescape(listed)
    [pair_id, *_] = pair_ids(client, "search=heaviest+dog")
    page = client.get(f"/pair?id={pair_id}")
    shown = text_of(page.text)
    for words in ("Name the heaviest dog.", "A chosen", "B rejected", "Gold", "correct", "wrong", "All candidates of the question", "Log-probability",
                  "Checkpoint hash", "5c1f0a9b2e77", "Strategy", "nearest", "tells A and B apart", "given", "tidy-1"):
        assert words in shown, words
    assert "<mark>" in page.text and '<svg class="schema"' in page.text and "visit.vet_id refers to vet" in page.text
    assert 'class="differs"' in page.text and ">≠" in page.text
    question = text_of(client.get("/question?id=clinic%2F05").text)
    assert "Rank the candidates" in question and "Name the heaviest dog." in question
    assert "Prefer A" in text_of(client.get("/keys").text)


def test_filters_search_and_sorting_stand_in_the_address(client):
    everything = pair_ids(client)
    assert len(everything) == len(set(everything)) > 15
    columns = pair_ids(client, "reason=columns")
    assert 0 < len(columns) < len(everything) and set(columns) < set(everything)
    assert pair_ids(client, "search=%22heaviest+dog%22&kind=order")
    assert pair_ids(client, "search=nothing+like+this") == []
    assert "No pair fits these filters." in text_of(client.get("/list?search=nothing+like+this").text)
    longest_first = pair_ids(client, "sort=chosen_length&order=down")
    assert sorted(longest_first) == sorted(everything) and longest_first != everything
    assert pair_ids(client, "sort=chosen_length")[0] != longest_first[0]
    page = client.get("/list?reason=columns&sort=chosen_length").text
    assert f"/pair?reason=columns&amp;sort=chosen_length&amp;id={columns[0]}" in page
    assert 'aria-sort="ascending"' in page
    walked = [columns[0]]
    while True:
        following = re.search(r'rel="next" href="/pair\?([^"]*)"', client.get(f"/pair?reason=columns&id={walked[-1]}").text)
        if not following:
            break
        walked.append(urllib.parse.parse_qs(unescape(following[1]))["id"][0])
    assert walked == columns
    refused = client.get("/list?round=first")
    assert refused.status_code == 400 and "whole numbers" in text_of(refused.text)


def test_a_page_of_the_list_never_holds_more_than_fifty_rows(open_client, tmp_path):
    rows = [{"prompt": f"question {number}", "chosen": f"SELECT {number}", "rejected": f"SELECT -{number}"} for number in range(130)]
    client = open_client(write_pairs(tmp_path / "plain.parquet", rows))
    pages = [pair_ids(client, f"page={page}") for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [50, 50, 30, 0]
    assert len(set(sum(pages, []))) == 130
    assert "page 3 of 3" in text_of(client.get("/list?page=3").text)
    assert client.get("/list?page=99999999999999999999999999").status_code == 200


def test_a_plain_preference_dataset_shows_what_it_has(open_client, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "How many?"}], "chosen": [{"role": "assistant", "content": "SELECT 1"}],
             "rejected": [{"role": "assistant", "content": "SELECT 2"}]}]
    client = open_client(write_pairs(tmp_path / "plain.parquet", rows))
    page = client.get(f"/pair?id={pair_ids(client)[0]}")
    shown = text_of(page.text)
    assert page.status_code == 200 and "How many?" in shown and "SELECT 2" in shown
    assert "has no schema" in shown and "Kill score" not in shown and "Checkpoint" not in shown


def test_a_file_of_samples_shows_them_and_ranks_their_questions(open_client, run_folder):
    client = open_client(run_folder / "round-1" / "candidates.parquet")
    listed = client.get("/list?reason=columns")
    assert listed.status_code == 200 and "samples" in text_of(listed.text) and 'href="/question?id=clinic%2F01"' in listed.text
    assert "Verdicts" in text_of(client.get("/").text)
    assert client.get("/pair?id=clinic/01:0").headers["location"] == "/question?id=clinic%2F01"
    assert "Rank the candidates" in text_of(client.get("/question?id=clinic%2F01").text)
    assert send(client, "/label?id=clinic/01:0", label="tie").status_code == 400


def test_a_database_that_is_gone_is_said_and_the_rest_is_shown(client, run_folder):
    (run_folder / "clinic.sqlite").unlink()
    shown = text_of(client.get(f"/pair?id={pair_ids(client)[0]}").text)
    assert "is gone" in shown and "How many pets" in shown and "tidy-1" in shown


@pytest.mark.parametrize(("address", "status", "words"), [
    ("/nowhere", 404, "Not Found"), ("/pair", 400, "names no pair"), ("/pair?id=ffff", 404, "holds no pair 'ffff'"),
    ("/question?id=none", 404, "holds no question"), ("/static/../server.py", 404, ""), ("/label", 405, ""),
    ("/list?labelled=maybe", 400, "allowed are yes and no"), ("/list?sort=DROP", 400, "DROP"),
])
def test_errors_are_pages_with_words(client, address, status, words):
    answer = client.get(address)
    assert answer.status_code == status and words in text_of(answer.text)
    assert answer.headers["content-type"].startswith("text/html")
    if words:
        as_json = client.get(address, headers={"Accept": "application/json"})
        assert as_json.status_code == status and as_json.json()["error"]


def test_what_takes_its_time_follows(client, monkeypatch):
    [first, *_] = pair_ids(client)
    monkeypatch.setattr(views, "run", lambda row, edited=None, run=views.run: (time.sleep(0.5), run(row, edited))[1])
    monkeypatch.setattr(views, "ANSWER_WAIT_S", 0)
    monkeypatch.setattr(views, "POLL_WAIT_S", 0.01)
    page = client.get(f"/pair?id={first}").text
    assert "still running" in page and "How many pets" in page and "Prefer A" in page
    assert client.get(f"/results?id={first}").status_code == 202
    monkeypatch.setattr(views, "POLL_WAIT_S", 60)
    assert "tells A and B apart" in text_of(client.get(f"/results?id={first}").text)


# ------------------------------------------------------------------ labelling


def test_a_label_is_on_disk_before_the_page_goes_on(client, run_folder):
    first, second, *_ = pair_ids(client)
    answer = send(client, f"/label?id={first}", label="prefer_b", comment="  the city is spelled in capitals ")
    assert stored(run_folder) == [(first, "ada", "prefer_rejected", "the city is spelled in capitals")]
    assert answer.status_code == 303 and answer.headers["location"] == f"/pair?id={second}&after={first}"
    assert "Saved: Prefer B" in text_of(client.get(answer.headers["location"]).text)
    page = client.get(f"/pair?id={first}").text
    assert re.search(r'value="prefer_b"[^>]*aria-pressed="true"', page)
    assert "spelled in capitals" in page
    assert first in pair_ids(client, "labelled=yes") and first not in pair_ids(client, "labelled=no")
    undone = send(client, "/undo")
    assert undone.status_code == 303 and f"id={first}" in undone.headers["location"]
    assert "You have no label on this pair" in text_of(client.get(undone.headers["location"]).text)
    assert stored(run_folder) == []
    assert send(client, "/undo").status_code == 409


@pytest.mark.parametrize("choice", [choice for choice, _, _ in CHOICES])
def test_every_choice_is_stored_as_the_file_calls_it(client, run_folder, choice):
    [first, *_] = pair_ids(client)
    answer = client.post(f"/label?id={first}", json={"label": choice}, headers={"X-CSRF-Token": client.guard.csrf, "Accept": "application/json"})
    assert answer.status_code == 200 and answer.json()["label"] == stored(run_folder)[0][2]
    assert stored(run_folder)[0][2] == stored_label(choice, {"A": "chosen", "B": "rejected"})


def test_labelling_a_list_of_unlabelled_pairs_loses_its_place_nowhere(client):
    wanted = pair_ids(client, "labelled=no&reason=rows")
    seen, current = [], wanted[0]
    while current:
        seen.append(current)
        target = send(client, f"/label?labelled=no&reason=rows&id={current}", label="tie").headers["location"]
        current = urllib.parse.parse_qs(urllib.parse.urlsplit(target).query).get("id", [None])[0]
    assert seen == wanted
    assert target.startswith("/list?") and "Saved: Tie" in text_of(client.get(target).text)


def test_what_is_no_label_is_refused_and_nothing_is_saved(client, run_folder):
    [first, *_] = pair_ids(client)
    for fields in ({"label": "best"}, {}, {"label": "tie", "comment": "x" * 20_000}, {"label": "tie", "annotator": "\x07"}):
        answer = send(client, f"/label?id={first}", **fields)
        assert answer.status_code == 400 and "allowed" in text_of(answer.text), fields
    assert send(client, f"/comment?id={first}", comment="   ").status_code == 400
    assert not (run_folder / "labels.sqlite").exists() or stored(run_folder) == []


def test_a_comment_is_kept_without_a_label(client):
    [first, *_] = pair_ids(client)
    assert send(client, f"/comment?id={first}", comment="<b>why?</b>").status_code == 303
    page = client.get(f"/pair?id={first}").text
    assert "&lt;b&gt;why?&lt;/b&gt;" in page and "<b>why" not in page


def test_two_annotators_at_once_lose_nothing(client, run_folder):
    ids = pair_ids(client)

    def label_all(name, choice):
        for pair_id in ids:
            assert send(client, f"/label?id={pair_id}", label=choice, annotator=name).status_code == 303

    people = [threading.Thread(target=label_all, args=who) for who in (("ada", "prefer_a"), ("bo", "prefer_b"), ("cy", "skip"))]
    for person in people:
        person.start()
    for person in people:
        person.join()
    found = stored(run_folder)
    assert len(found) == 3 * len(ids)
    assert {(pair_id, label) for pair_id, name, label, _ in found if name == "bo"} == {(pair_id, "prefer_rejected") for pair_id in ids}


def test_a_pair_that_was_made_anew_takes_no_label_meant_for_the_old_one(client, run_folder):
    path = run_folder / "round-1" / "pairs.parquet"
    first, second, third, *_ = pair_ids(client)
    page = client.get(f"/pair?id={second}").text
    seen = re.search(r'name="content_hash" value="([^"]*)"', page)[1]
    rows = pq.read_table(path)
    changed = rows.slice(1).to_pylist()
    changed[0]["rejected"] = [{"role": "assistant", "content": "SELECT 'something else'"}]
    time.sleep(0.02)
    pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), path)
    gone = send(client, f"/label?id={first}", label="tie")
    assert gone.status_code == 410 and "no longer in the file" in text_of(gone.text)
    other = send(client, f"/label?id={second}", label="tie", content_hash=seen)
    assert other.status_code == 409 and "Nothing was saved" in text_of(other.text)
    assert client.get(f"/pair?id={first}").status_code == 404
    assert send(client, f"/label?id={third}", label="tie").status_code == 303
    assert [row[0] for row in stored(run_folder)] == [third]


def test_candidates_are_ranked_with_ties(client):
    page = client.get("/question?id=clinic%2F05").text
    keys = re.findall(r'name="rank-([0-9a-f]{16})"', page)
    assert len(keys) == 5
    answer = send(client, "/rank?id=clinic%2F05", **{f"rank-{keys[0]}": "2", f"rank-{keys[1]}": "1", f"rank-{keys[2]}": "1", f"rank-{keys[3]}": ""})
    assert answer.status_code == 303
    ranks, asked = client.guard.site.labels.rankings()["clinic/05"]["ada"]
    assert f'name="content_hash" value="{asked}"' in page and len(asked) == 16
    assert send(client, "/rank?id=clinic%2F05", content_hash="0" * 16, **{f"rank-{keys[0]}": "1"}).status_code == 409
    assert sorted(ranks.values()) == [1, 1, 2]
    shown = client.get(answer.headers["location"]).text
    assert "Saved: your order" in shown
    placed = re.findall(r'name="rank-([0-9a-f]{16})"[^>]*value="(\d*)"', shown)
    assert [place for _, place in placed] == ["1", "1", "2", "", ""] and placed[2][0] == keys[0]
    assert send(client, "/rank?id=clinic%2F05", **{f"rank-{keys[0]}": "first"}).status_code == 400
    assert send(client, "/rank?id=clinic%2F05", **{"rank-0123456789abcdef": "1"}).status_code == 409
    assert send(client, "/rank?id=none", **{f"rank-{keys[0]}": "1"}).status_code == 410


def test_the_annotators_name_and_the_colours_are_remembered(client, run_folder):
    [first, *_] = pair_ids(client)
    answer = send(client, "/annotator", name="Zoë O'Hara", **{"return": f"/pair?id={first}"})
    assert answer.headers["location"] == f"/pair?id={first}" and "samesite=strict" in answer.headers["set-cookie"].lower()
    page = client.get(f"/pair?id={first}").text
    assert 'name="annotator" value="Zoë O&#39;Hara"' in page
    send(client, f"/label?id={first}", label="tie")
    assert stored(run_folder)[0][1] == "Zoë O'Hara"
    for target in ("//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"):
        assert send(client, "/theme", theme="dark", **{"return": target}).headers["location"] == "/"
    assert '<html lang="en" data-theme="dark">' in client.get("/list").text
    send(client, "/theme", theme="")
    assert "data-theme" not in client.get("/list").text
    assert send(client, "/annotator", name="\u202e" * 3).status_code == 400


def test_a_label_file_that_is_none_is_said_and_the_pairs_are_shown(open_client, run_folder):
    (run_folder / "labels.sqlite").write_text("not a database, but long enough to look at" * 100)
    client = open_client(run_folder)
    [first, *_] = pair_ids(client)
    for address in ("/list", "/", f"/pair?id={first}"):
        answer = client.get(address)
        assert answer.status_code == 200 and "is no label file" in text_of(answer.text), address
    refused = send(client, f"/label?id={first}", label="tie")
    assert refused.status_code == 400 and "is no label file" in text_of(refused.text)


# ------------------------------------------------------------------ blind


def test_blind_mode_names_no_side_and_swaps_half_of_them(open_client, run_folder):
    client = open_client(run_folder, blind=True)
    ids = pair_ids(client)
    swapped = [letters(pair_id, "ada", True)["A"] == "rejected" for pair_id in ids]
    assert 0 < sum(swapped) < len(ids)
    assert swapped != [letters(pair_id, "bo", True)["A"] == "rejected" for pair_id in ids]
    for address in ("/list", f"/pair?id={ids[0]}", f"/pair?id={ids[1]}", "/question?id=clinic%2F05", f"/results?id={ids[0]}"):
        answer = client.get(address)
        assert answer.status_code == 200
        shown = re.sub(r"/list\?[^\"]*", "", answer.text)
        for word in ("chosen", "rejected", 'class="verdict', "✗", "Verdict"):
            assert word not in shown, (address, word)
    known = {row["pair_id"]: row for row in pq.read_table(run_folder / "round-1" / "pairs.parquet").to_pylist()}
    for pair_id, is_swapped in zip(ids[:8], swapped, strict=False):
        page = client.get(f"/pair?id={pair_id}").text
        a = unescape(re.search(r'<textarea name="a"[^>]*>\n(.*?)</textarea>', page, re.S)[1])
        assert a == known[pair_id]["rejected_sql" if is_swapped else "chosen_sql"]
        send(client, f"/label?id={pair_id}", label="prefer_a")
        assert stored(run_folder)[-1][2] == ("prefer_rejected" if is_swapped else "prefer_chosen")
        assert re.search(r'value="prefer_a"[^>]*aria-pressed="true"', client.get(f"/pair?id={pair_id}").text)
    send(client, f"/label?id={ids[0]}", label="prefer_b", annotator="bo")
    assert "bo" not in text_of(client.get(f"/pair?id={ids[0]}").text).split()


def test_blind_mode_keeps_filters_and_order_from_telling(open_client, run_folder):
    client = open_client(run_folder, blind=True)
    assert pair_ids(client, "reason=columns&verdict=wrong&sort=chosen_length") == pair_ids(client)
    form = re.search(r'<form class="filters".*?</form>', client.get("/list").text, re.S)[0]
    assert 'name="verdict"' not in form and 'name="reason"' not in form


# ------------------------------------------------------------------ whom it refuses


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"}, {"Origin": "https://localhost:7861"},
    {"Referer": "http://evil.example/127.0.0.1:7861"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Host": "evil.example:7861"}, {"Host": ""}, {"Host": "127.0.0.1.evil.example"}, {"Host": "192.168.0.7:7861"}, {"Host": "[::bad"},
])
def test_another_origin_cannot_label(client, run_folder, headers):
    [first, *_] = pair_ids(client)
    answer = client.post(f"/label?id={first}", data={"csrf": client.guard.csrf, "label": "tie"}, headers=headers)
    assert answer.status_code in (400, 403)
    assert not (run_folder / "labels.sqlite").exists()
    assert client.guard.csrf not in answer.text and "run" not in text_of(answer.text).split()


@pytest.mark.parametrize("token", [None, "", "0" * 32, "é" * 8])
def test_a_form_without_the_servers_token_cannot_label(client, run_folder, token):
    [first, *_] = pair_ids(client)
    answer = client.post(f"/label?id={first}", data={"label": "tie"} | ({} if token is None else {"csrf": token}))
    assert answer.status_code == 403 and "Nothing was saved" in text_of(answer.text)
    assert not (run_folder / "labels.sqlite").exists()


@pytest.mark.parametrize("host", ["127.0.0.1:7861", "localhost:7861", "[::1]:7861", "localhost:8000", "127.0.0.1"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/list", headers={"Host": host}).status_code == 200


def test_a_dns_name_that_is_made_to_point_here_reads_nothing(client):
    answer = client.get("/list", headers={"Host": "evil.example:7861"})
    assert answer.status_code == 400 and "SELECT" not in answer.text


def test_every_answer_carries_the_headers_that_keep_it_harmless(client):
    [first, *_] = pair_ids(client)
    for address in ("/", "/list", f"/pair?id={first}", "/nowhere", "/static/keys.js", f"/text?id={first}&field=a"):
        headers = client.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
    page = client.get(f"/pair?id={first}").text
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|\son\w+=|\sstyle=|https?://", page)


@pytest.mark.parametrize(("content", "kind", "status"), [
    (b"x" * (2 << 20), "application/x-www-form-urlencoded", 413), (b"{" * 500_000, "application/json", 400),
    (b"[1]", "application/json", 400), (b'{"label": 1}', "application/json", 400), (b'{"label": "\\ud800"}', "application/json", 400),
    (b"label=%ff", "application/x-www-form-urlencoded", 400), (b"label=\xff", "application/x-www-form-urlencoded", 400),
    (b"a=1&" * 5000, "application/x-www-form-urlencoded", 400), (b"<x/>", "text/xml", 415), (b"", "multipart/form-data", 415),
])
def test_forms_are_limited_and_must_be_readable(client, content, kind, status):
    answer = client.post("/label?id=x", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status and text_of(answer.text)
    assert client.get("/list").status_code == 200


def test_methods_other_than_get_and_post_are_refused(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/list").status_code == 405


def test_beyond_loopback_a_token_is_needed(open_client, run_folder):
    client = open_client(run_folder, address="http://192.168.0.7:7861", host="0.0.0.0", token="a-long-token")
    for address in ("/", "/list", "/pair?id=x", "/nowhere"):
        answer = client.get(address)
        assert answer.status_code == 401 and 'type="password"' in answer.text
        assert client.guard.csrf not in answer.text and "clinic" not in answer.text
    assert client.get("/static/style.css").status_code == 200
    for address in ("/static/none", "/login", "/static/"):
        answer = client.get(address)
        assert answer.status_code in (404, 405), "an error behind an open address tells no more"
        assert client.guard.csrf not in answer.text and str(run_folder) not in answer.text and "File:" not in answer.text
    assert client.post("/label?id=x", data={"csrf": client.guard.csrf, "label": "tie"}).status_code == 401
    assert client.post("/login", data={"token": "a-long-toke"}).status_code == 401
    assert client.get("/list", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/list", headers={"Authorization": "Bearer a-long-token"}).status_code == 200
    answer = client.post("/login", data={"token": "a-long-token"})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "a-long-token" not in cookie
    assert client.get("/list").status_code == 200
    assert client.post("/login", data={"token": "a-long-token"}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/list", headers={"Host": "evil.example:7861"}).status_code == 400


# ------------------------------------------------------------------ hostile content


@pytest.fixture
def hostile_client(open_client, tmp_path):
    rows = [{"prompt": attack, "chosen": attack, "rejected": f"SELECT '{attack}'", "question": attack, "context": f"CREATE TABLE t (x TEXT); {attack}",
             "gold_sql": attack, "example_id": attack[:400], "source": attack, "strategy": attack, "kind": [attack], "chosen_verdict": attack,
             "chosen_reason": attack, "rejected_verdict": "wrong", "rejected_reason": attack, "chosen_trace": json.dumps({attack: [[attack]]}),
             "database": attack[:300], "checkpoint_hash": attack} for attack in HOSTILE]
    return open_client(write_pairs(tmp_path / "hostile.parquet", rows))


def test_hostile_content_is_inert(hostile_client):
    client = hostile_client
    ids = pair_ids(client)
    assert len(ids) == len(HOSTILE)
    addresses = ["/list", "/", *(f"/pair?id={pair_id}" for pair_id in ids)]
    addresses += [f"/question?id={urllib.parse.quote(attack[:400], safe='')}" for attack in HOSTILE]
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200, (address[:80], text_of(answer.text)[:300])
        page = answer.text
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)[^>]*>|<img|<a href='javascript", page)
        assert len(page) < 1_500_000
        shown = re.sub(r"<textarea.*?</textarea>|value=\"[^\"]*\"|<title>.*?</title>", "", page, flags=re.S)
        assert not re.search("[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069]", shown)
    assert "{{ 7 * 7 }}{% raw %}" in text_of(client.get(f"/pair?id={ids[2]}").text)
    page = client.get(f"/pair?id={ids[3]}").text
    assert '<span class="hidden-character">⟨U+202E⟩</span>' in page and "⟨U+0007⟩" in page


def test_a_text_of_a_million_characters_is_cut_and_can_be_read_whole(hostile_client):
    client = hostile_client
    page = client.get(f"/pair?id={pair_ids(client)[6]}").text
    assert "more characters" in page and "show all 1,000,000 characters" in page
    [address] = {unescape(found) for found in re.findall(r'href="(/text\?[^"]*field=question)"', page)}
    whole = client.get(address)
    assert whole.headers["content-type"].startswith("text/plain") and len(whole.text) == 1_000_000
    assert client.get(address.replace("question", "pair_id")).status_code == 404


def test_typed_sql_runs_and_is_not_saved(client, run_folder):
    [first, *_] = pair_ids(client)
    before = (run_folder / "clinic.sqlite").read_bytes()
    answer = send(client, f"/run?id={first}", a="SELECT name FROM vet ORDER BY name", b="DROP TABLE pet", gold="SELECT COUNT(*) FROM pet")
    shown = text_of(answer.text)
    assert answer.status_code == 200 and "Dr. Costa" in shown and "refused" in shown and "Results of the edited queries" in shown
    assert f'name="return" value="/pair?id={first}"' in answer.text
    assert (run_folder / "clinic.sqlite").read_bytes() == before
    assert "Dr. Costa" not in text_of(client.get(f"/pair?id={first}").text)
    assert send(client, f"/run?id={first}", a="SELECT '" + "x" * 100_001 + "'").status_code == 413


@pytest.mark.skipif(not HOSTILE_SQL.is_file(), reason="needs the shared folder's hostile.jsonl")
def test_hostile_sql_typed_into_the_page_is_refused_or_limited(client, run_folder):
    [first, *_] = pair_ids(client)
    before = (run_folder / "clinic.sqlite").read_bytes()
    for line in HOSTILE_SQL.read_text(encoding="utf-8").splitlines():
        statement = json.loads(line)
        typed = statement["sql"] if "sql" in statement else "".join(text * count for text, count in statement["build"])
        answer = send(client, f"/run?id={first}", a=typed.encode("utf-8", "replace").decode())
        if len(typed) > 100_000:
            assert answer.status_code == 413, statement["id"]
            continue
        assert answer.status_code == 200, statement["id"]
        assert "Results of the edited queries" in answer.text, statement["id"]
    assert client.get("/list").status_code == 200
    assert (run_folder / "clinic.sqlite").read_bytes() == before
    assert "Dr. Reis" in text_of(send(client, f"/run?id={first}", a="SELECT name FROM vet").text)


# ------------------------------------------------------------------ the process


@pytest.fixture
def serve():
    """Starts servers in processes of their own: (process, address) once they listen."""
    processes = []

    def start(path, *arguments):
        code = (f"from pathlib import Path\nfrom preference.inspection.server import serve\n"
                f"serve(Path({str(path)!r}), annotator='ada', browser=False, {', '.join(arguments)})")
        process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        line = process.stdout.readline()
        found = re.search(r"at (http://\S+/) ", line)
        assert found, line + process.stderr.read()
        return process, found[1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def fetch(address, **fields):
    """Status and text of a page; with fields, of a form that a script sends."""
    data = urllib.parse.urlencode(fields).encode() if fields else None
    request = urllib.request.Request(address, data, {"Accept": "application/json"} if fields else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_server_serves_and_ends_cleanly_at_ctrl_c(serve, run_folder):
    process, address = serve(run_folder, "port=0")
    assert address.startswith("http://127.0.0.1:") and fetch(address + "list")[0] == 200
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 0 and "Stopped" in output and "Traceback" not in errors


def test_a_taken_port_gives_the_next_one_and_a_wish_for_it_an_error(serve, run_folder):
    first = server.listen("127.0.0.1", None)
    second = server.listen("127.0.0.1", None)
    try:
        numbers = [listener.getsockname()[1] for listener in (first, second)]
        assert server.PORT <= numbers[0] < numbers[1] < server.PORT + server.MOST_PORTS
        with pytest.raises(ValueError, match=f"port {numbers[0]} on 127.0.0.1 is taken"):
            server.listen("127.0.0.1", numbers[0])
    finally:
        first.close()
        second.close()
    for port, host, words in ((70_000, "127.0.0.1", "allowed is 0"), (0, "203.0.113.9", "cannot listen"), (0, "no.such.host.invalid", "cannot listen")):
        with pytest.raises(ValueError, match=words):
            server.listen(host, port)


def test_labels_survive_a_killed_server(serve, run_folder):
    process, address = serve(run_folder, "port=0")
    page = fetch(address + "list")[1]
    csrf = re.search(r'name="csrf-token" content="([^"]*)"', page)[1]
    ids = [urllib.parse.parse_qs(unescape(found))["id"][0] for found in re.findall(r'question-cell"[^>]*><a href="/pair\?([^"]*)"', page)]
    for pair_id in ids[:10]:
        assert fetch(f"{address}label?id={pair_id}", csrf=csrf, label="prefer_b")[0] == 200
    process.kill()
    process.wait()
    assert [row[0] for row in stored(run_folder)] == ids[:10]
    _, address = serve(run_folder, "port=0")
    assert fetch(f"{address}label?id={ids[0]}", csrf=csrf, label="tie")[0] == 403
    assert "Prefer B" in text_of(fetch(f"{address}pair?id={ids[0]}")[1])


def test_a_server_beyond_loopback_makes_and_prints_a_token(serve, run_folder):
    process, address = serve(run_folder, "port=0", "host='0.0.0.0'")
    token = re.search(r"token: (\S+)", process.stdout.readline())[1]
    assert len(token) >= 20 and fetch(address + "list")[0] == 401
    request = urllib.request.Request(address + "list", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    with pytest.raises(ValueError, match="token is empty"):
        server.serve(run_folder, token="  ")


def test_the_server_loads_no_torch():
    code = ("import sys, preference.inspection.server\n"
            "print(*{'torch', 'transformers', 'trl', 'datasets', 'pandas'} & sys.modules.keys())")
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "", done.stdout + done.stderr


def test_fifty_labels_through_the_page_flip_their_pairs(serve, copied_clinic_run, tmp_path):
    """A script labels, `apply` writes the pairs anew, and what training reads has the sides that people preferred."""
    folder = Path(shutil.copytree(copied_clinic_run, tmp_path / "run"))
    path = folder / "round-1" / "pairs.parquet"
    before = {row["pair_id"]: row for row in pq.read_table(path).to_pylist()}
    _, address = serve(folder, "port=0")
    csrf = re.search(r'name="csrf-token" content="([^"]*)"', fetch(address + "list")[1])[1]
    flipped, confirmed, tied = (list(before)[start:50:3] for start in range(3))
    for ids, choice in ((flipped, "prefer_b"), (confirmed, "prefer_a"), (tied, "tie")):
        for pair_id in ids:
            assert fetch(f"{address}label?id={pair_id}", csrf=csrf, label=choice)[0] == 200
    done = subprocess.run([sys.executable, "-m", "preference.inspection.command", "apply", str(folder)], cwd=PROJECT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    after = pq.read_table(path).to_pylist()
    sides = {(str(row["prompt"]), row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in after}
    for pair_id, row in before.items():
        as_it_was = (str(row["prompt"]), row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        turned = (as_it_was[0], as_it_was[2], as_it_was[1])
        assert (turned in sides) == (pair_id in flipped)
        assert (as_it_was in sides) == (pair_id not in flipped and pair_id not in tied)
    assert len(after) == len(before) - len(tied)
    page = text_of(fetch(f"{address}list?person_label=prefer_rejected")[1])
    assert f"{len(flipped)} of {len(after)} pairs" in page

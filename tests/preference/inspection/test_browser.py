"""The inspection page as a person uses it: in real Chromium, with keys, on a wide screen and on a phone."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
SCREENSHOTS = Path(__file__).parent / "screenshots"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1360, "height": 900}


@pytest.fixture(scope="module")
def playwright():
    return pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def browser(playwright):
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not executable:
        pytest.skip("needs a Chromium browser on the PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def run_folder(clinic_run, tmp_path):
    return Path(shutil.copytree(clinic_run, tmp_path / "clinic"))


@pytest.fixture
def serve():
    """Starts a server, whose pages wait for their results, in a process of its own and returns its address."""
    processes = []

    def start(path, prelude="views.ANSWER_WAIT_S = views.OVERVIEW_WAIT_S = 60", **options):
        code = (f"from pathlib import Path\nfrom preference.inspection import views\n{prelude}\n"
                f"from preference.inspection.server import serve\nserve(Path({str(path)!r}), port=0, annotator='ada', browser=False, **{options!r})")
        process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return re.search(r"at (http://\S+)/ ", process.stdout.readline())[1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def visit(browser):
    """Opens pages in browsers of their own; a message in a console, a failed request or an error fails the test."""
    said, contexts = [], []

    def open_page(address, **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def press(page, key) -> None:
    """A key once the page's script is there to hear it."""
    page.wait_for_load_state()
    page.keyboard.press(key)


def stored(folder) -> list[tuple]:
    with closing(sqlite3.connect(folder / "labels.sqlite")) as connection:
        return connection.execute("SELECT annotator, label, comment FROM labels WHERE undone IS NULL ORDER BY label_id").fetchall()


def widths(page) -> tuple[int, int]:
    return page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")


def test_a_person_labels_with_the_keyboard(playwright, serve, visit, run_folder):
    expect = playwright.expect
    page = visit(serve(run_folder))
    page.get_by_role("link", name="Start labelling").wait_for()
    press(page, "l")
    expect(page.locator("#count")).to_have_text(re.compile(r"^\d+ pairs"))
    everything = page.locator(".list tbody tr").count()

    page.get_by_label("Reason").select_option("columns")
    expect(page).to_have_url(re.compile("reason=columns"))
    expect(page.locator("#count")).to_contain_text(f"of {everything} pairs")
    press(page, "/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("average weight")
    press(page, "Enter")
    expect(page.locator(".list tbody tr")).to_have_count(1)
    page.get_by_role("link", name="What is the average weight").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("What is the average weight of each kind of pet?")
    expect(page.locator(".differs").first).to_be_visible()
    page.get_by_role("link", name="Pairs", exact=True).click()
    expect(page).to_have_url(re.compile("reason=columns.*search=average"))
    page.get_by_role("link", name="Clear").click()
    expect(page.locator("#count")).to_have_text(re.compile(r"^\d+ pairs"))
    press(page, "Enter")
    page.get_by_role("heading", name="Results").wait_for()

    press(page, "e")
    editor = page.get_by_label("B, SQL")
    expect(editor).to_be_visible()
    editor.fill("SELECT name FROM vet ORDER BY name")
    press(page, "Escape")
    press(page, "r")
    expect(page.get_by_role("heading", name="Results of the edited queries")).to_be_visible()
    expect(page.locator("#results")).to_contain_text("Dr. Costa")
    expect(page.get_by_label("B, SQL")).to_have_value("SELECT name FROM vet ORDER BY name")
    page.get_by_role("link", name="Back to the pair's own queries").click()
    page.get_by_role("heading", name="Results", exact=True).wait_for()

    first = page.url
    press(page, "c")
    page.keyboard.type("both count the pets; b")
    press(page, "Escape")
    press(page, "b")
    expect(page.get_by_role("status").first).to_contain_text("Saved: Prefer B")
    assert stored(run_folder) == [("ada", "prefer_rejected", "both count the pets; b")]
    for key, words in (("3", "Tie"), ("g", "Gold wrong"), ("q", "Cannot be answered"), ("s", "Skip")):
        press(page, key)
        expect(page.get_by_role("status").first).to_contain_text(f"Saved: {words}")
    press(page, "u")
    expect(page.get_by_role("status").first).to_contain_text("Undone")
    assert [label for _, label, _ in stored(run_folder)] == ["prefer_rejected", "tie", "gold_wrong", "unanswerable"]
    press(page, "p")
    expect(page.get_by_role("button", name="Cannot be answered")).to_have_attribute("aria-pressed", "true")
    page.goto(first)
    page.reload()
    expect(page.get_by_role("button", name="Prefer B")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#said")).to_contain_text("both count the pets; b")
    page.get_by_role("link", name="Pairs", exact=True).click()
    page.get_by_role("combobox", name="Labels").select_option("yes")
    expect(page.locator(".list tbody tr")).to_have_count(4)
    expect(page.locator(".list tbody tr").first).to_contain_text("Prefer B")


def test_help_lists_the_keys_and_can_turn_them_off(playwright, serve, visit, run_folder):
    page = visit(serve(run_folder) + "/list")
    press(page, "?")
    help_ = page.get_by_role("dialog", name="Keys")
    playwright.expect(help_).to_contain_text("Undo your last label")
    press(page, "o")
    assert page.url.endswith("/list")  # keys rest while the help is open
    help_.get_by_label("Single keys do something").uncheck()
    press(page, "Escape")
    playwright.expect(help_).to_be_hidden()
    press(page, "o")
    page.wait_for_timeout(100)
    assert page.url.endswith("/list")


def test_a_key_that_is_held_labels_one_pair(playwright, serve, visit, run_folder):
    page = visit(serve(run_folder) + "/list")
    press(page, "Enter")
    page.get_by_role("button", name="Tie").wait_for()
    for _ in range(5):
        page.keyboard.down("t")  # the second and later ones are repeats
    page.keyboard.up("t")
    playwright.expect(page.get_by_role("status").first).to_contain_text("Saved: Tie")
    assert len(stored(run_folder)) == 1


def test_a_comment_that_was_not_sent_waits_for_its_pair(playwright, serve, visit, run_folder):
    expect = playwright.expect
    page = visit(serve(run_folder) + "/list")
    press(page, "Enter")
    field = page.get_by_label("Comment, saved with the label")
    field.fill("first look at\nthe other one")
    press(page, "Escape")
    first = page.url
    press(page, "n")
    page.wait_for_url(lambda url: url != first)
    expect(field).to_have_value("")
    press(page, "p")
    expect(field).to_have_value("first look at\nthe other one")
    press(page, "t")
    expect(page.get_by_role("status").first).to_contain_text("Saved: Tie")
    assert stored(run_folder) == [("ada", "tie", "first look at\r\nthe other one")]  # as forms send line ends
    press(page, "u")
    expect(page.get_by_role("status").first).to_contain_text("Undone")
    expect(field).to_have_value("first look at\nthe other one")
    page.get_by_role("button", name="Save comment").click()
    expect(page.locator("#said")).to_contain_text("the other one")
    expect(field).to_have_value("")


def test_everything_works_without_script(playwright, serve, visit, run_folder):
    page = visit(serve(run_folder) + "/list", java_script_enabled=False)
    page.get_by_label("Search").fill("heaviest dog")
    page.get_by_role("button", name="Show").click()
    page.locator("td.question-cell a").first.click()
    page.get_by_text("Edit").first.click()
    page.get_by_label("A, SQL").fill("SELECT name FROM vet")
    page.get_by_role("button", name="Run again").first.click()
    playwright.expect(page.locator("#results")).to_contain_text("Dr. Reis")
    page.get_by_role("button", name="Prefer A").click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("Saved: Prefer A")
    page.get_by_role("button", name="Undo").click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("Undone")
    page.get_by_role("link", name="Rank them").click()
    page.get_by_label("Place of candidate 2").fill("1")
    page.get_by_role("button", name="Save the order").click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("Saved: your order")
    page.get_by_role("button", name="Colours").click()
    playwright.expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_results_that_take_their_time_follow(playwright, serve, visit, run_folder):
    slow = ("import time\nrun = views.run\nviews.ANSWER_WAIT_S, views.POLL_WAIT_S = 0.01, 0.2\n"
            "views.run = lambda *pair: (time.sleep(1), run(*pair))[1]")
    page = visit(serve(run_folder, slow) + "/list")
    page.get_by_role("link", name="Label from the first").click()
    playwright.expect(page.locator("#pending")).to_contain_text("still running")
    playwright.expect(page.locator("#results .differs").first).to_be_visible()
    playwright.expect(page.locator("#pending")).to_have_count(0)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_hostile_content_does_nothing_in_a_browser(serve, visit, tmp_path, viewport):
    import pyarrow as pa
    import pyarrow.parquet as pq

    attacks = ["</script><script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>", "\u202egpj.exe \x1b[31m\x07",
               "</textarea><a href='javascript:window.harmed=1' autofocus onfocus='window.harmed=1'>x", "x" * 1_000_000]
    names = ("prompt", "chosen", "rejected", "question", "context", "gold_sql", "example_id", "source", "strategy", "chosen_verdict",
             "rejected_verdict", "rejected_reason", "checkpoint_hash")
    rows = [{name: attack[:300] if name == "example_id" else attack for name in names} | {"kind": [attack]} for attack in attacks]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hostile.parquet")
    address = serve(tmp_path / "hostile.parquet")
    page = visit(address + "/list", viewport=viewport)
    links = [link.get_attribute("href") for link in page.locator("td.question-cell a").all()]
    assert len(links) == len(attacks)
    for path in ("/list", "/", *links):
        page.goto(address + path)
        page.locator("h1").wait_for()
        assert page.evaluate("window.harmed") is None
        scrolled, shown = widths(page)
        assert scrolled <= shown, path


def test_candidates_are_ranked_by_keys_and_by_dragging(playwright, serve, visit, run_folder):
    expect = playwright.expect
    page = visit(serve(run_folder) + "/question?id=clinic%2F05", viewport={"width": 1200, "height": 1400})
    candidates = page.locator(".candidate")
    expect(candidates).to_have_count(5)
    candidates.first.focus()
    for key in "2112":
        press(page, key)
    press(page, "s")
    expect(page.get_by_role("status").first).to_contain_text("Saved: your order")
    values = [field.input_value() for field in page.locator(".place input").all()]
    assert values == ["1", "1", "2", "2", ""]
    expect(candidates.first).to_have_class(re.compile("tied"))

    def drag(start, end, share):
        grip, target = candidates.nth(start).locator(".grip").bounding_box(), candidates.nth(end).bounding_box()
        page.mouse.move(grip["x"] + 4, grip["y"] + 8)
        page.mouse.down()
        page.mouse.move(target["x"] + 60, target["y"] + share * target["height"], steps=4)
        page.mouse.up()

    last = candidates.nth(4).get_attribute("aria-label")
    drag(4, 0, 0.1)
    expect(candidates.first).to_have_attribute("aria-label", last)
    assert [field.input_value() for field in page.locator(".place input").all()] == ["1", "2", "2", "3", "3"]
    drag(0, 1, 0.5)
    assert [field.input_value() for field in page.locator(".place input").all()] == ["1", "1", "1", "2", "2"]


def test_two_tabs_and_two_people_lose_nothing(playwright, serve, visit, run_folder):
    address = serve(run_folder)
    one, other = visit(address + "/list"), visit(address + "/list")
    other.get_by_label("Your name as annotator").fill("bo")
    other.get_by_role("button", name="Set your name").click()
    for page in (one, other):
        page.get_by_role("link", name="Label from the first").click()
        page.get_by_role("heading", name="Results").wait_for()
    for _ in range(3):
        press(one, "a")
        press(other, "b")
        playwright.expect(one.get_by_role("status").first).to_contain_text("Saved: Prefer A")
        playwright.expect(other.get_by_role("status").first).to_contain_text("Saved: Prefer B")
        for page in (one, other):
            page.goto(page.url.replace("&after=", "&before="))
    assert sorted(stored(run_folder)) == [("ada", "prefer_chosen", "")] * 3 + [("bo", "prefer_rejected", "")] * 3


def test_blind_mode_and_a_label_that_finds_its_side(playwright, serve, visit, run_folder):
    page = visit(serve(run_folder, blind=True) + "/list")
    page.get_by_role("link", name="Label from the first").click()
    page.get_by_role("heading", name="Results").wait_for()
    words = page.locator("body").inner_text()
    assert "chosen" not in words and "rejected" not in words and "correct" not in words
    text = page.locator("#side-a + pre").inner_text()
    press(page, "a")
    playwright.expect(page.get_by_role("status").first).to_contain_text("Saved: Prefer A")
    import pyarrow.parquet as pq

    first = pq.read_table(run_folder / "round-1" / "pairs.parquet").to_pylist()[0]
    side = stored(run_folder)[0][1].removeprefix("prefer_")
    assert first[f"{side}_sql"] == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_have_names_and_contrast(serve, visit, run_folder, scheme):
    address = serve(run_folder)
    page = visit(address + "/list", viewport=PHONE, color_scheme=scheme)
    pair = page.locator("td.question-cell a").nth(6).get_attribute("href")
    for path in ("/", "/list", pair, "/question?id=clinic%2F04", "/keys"):
        page.goto(address + path)
        scrolled, shown = widths(page)
        assert scrolled <= shown, path
        unnamed = page.evaluate("""[...document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea")].filter((node) =>
          node.checkVisibility() && !(node.ariaLabel || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)""")
        assert unnamed == [], path
        assert page.evaluate("document.querySelectorAll('main').length") == 1
        assert faint_texts(page) == [], path


def faint_texts(page) -> list[str]:
    """Visible texts whose contrast with what is behind them is below 4.5 (WCAG AA)."""
    return page.evaluate("""() => {
      const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
      const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
      const ground = (node) => { for (; node; node = node.parentElement) { const colour = rgba(getComputedStyle(node).backgroundColor); if (colour[3] === 255) return colour; } return rgba("Canvas"); };
      const faint = [];
      for (const node of document.querySelectorAll("body *")) {
        if (node.closest("svg") || !node.checkVisibility() || ![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
        const style = getComputedStyle(node);
        if (style.clipPath !== "none" || node.closest("[disabled], .unseen, .arrow")) continue;
        const [a, b] = [light(rgba(style.color)), light(ground(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(node.outerHTML.slice(0, 120));
      }
      return faint;
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(serve, visit, run_folder, scheme, tmp_path):
    """Overview, list and pair; the files in the repository are made anew with INSPECTION_SCREENSHOTS=1."""
    folder = SCREENSHOTS if os.environ.get("INSPECTION_SCREENSHOTS") else tmp_path
    address = serve(run_folder)
    page = visit(address + "/list", color_scheme=scheme, viewport={"width": 1360, "height": 840})
    for choice in ("Prefer A", "Prefer A", "Prefer B", "Prefer A", "Tie", "Prefer A"):
        if page.url.endswith("/list"):
            page.get_by_role("link", name="Label from the first").click()
        page.get_by_role("button", name=choice).click()
    pair = page.goto(address + "/list?search=never+visited") and page.locator("td.question-cell a").first.get_attribute("href")
    for name, path in (("overview", "/"), ("list", "/list"), ("pair", pair)):
        page.goto(address + path)
        page.get_by_role("heading", name={"overview": "Labels so far", "list": "Pairs", "pair": "Results"}[name]).wait_for()
        page.locator("#pending").wait_for(state="detached")
        page.screenshot(path=folder / f"{name}-{scheme}.png", animations="disabled", caret="hide")
        kept = SCREENSHOTS / f"{name}-{scheme}.png"
        assert kept.is_file() and kept.stat().st_size < 200_000, f"make {kept.name} with INSPECTION_SCREENSHOTS=1"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {"light": "rgb(250, 250, 248)", "dark": "rgb(19, 21, 24)"}[scheme]

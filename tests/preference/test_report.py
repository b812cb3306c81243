"""The report: counts by hand, and a page that shows hostile text without obeying it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from preference.report import print_table, render_page, summarise, write_report
from preference.report_page import plots, text
from sft.artefacts import content_hash

HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.harmed = 1'>",
    "]]>&lt;b&gt;\u2028\u2029",
    "SELECT '\u202egpj.exe\u202c' \x00\x1b[31m\x07 \ud800 \u200b",
    '"};window.harmed = 1;//',
    "{{ 7 * 7 }}{% raw %}",
]


def row(example_id, verdict="correct", reason=None, **changes):
    return {"example_id": example_id, "question": f"Question {example_id}?", "context": "CREATE TABLE t (id INTEGER)",
            "gold_sql": "SELECT id FROM t", "kind": ["join"], "completion": "SELECT id FROM t",
            "sql": "SELECT id FROM t", "verdict": verdict, "reason": reason, "trace": None,
            "ended_with_eos": True, "token_count": 10} | changes


def three_models():
    """base: 1 of 4 right; sft: gains 2, 3 and loses 1; dpo: all four right."""
    return {
        "base": [row("1"), row("2", "wrong", "sql_error", ended_with_eos=False, token_count=30, sql=None,
                                completion="No."),
                 row("3", "wrong", "rows", kind=["join", "nested"]), row("4", "unclear", "volatile", kind=[])],
        "sft": [row("1", "wrong", "timeout"), row("2"), row("3", kind=["join", "nested"]),
                row("4", "wrong", "timeout", kind=[])],
        "dpo": [row("1"), row("2"), row("3", kind=["join", "nested"]), row("4", kind=[])],
    }


def embedded(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="answers">(.*?)</script>', page, re.S)[1])


def test_summary_by_hand():
    summary = summarise("test", three_models(), {})
    assert (summary["split"], summary["n"], list(summary["models"])) == ("test", 4, ["base", "sft", "dpo"])
    base = summary["models"]["base"]
    assert base["execution_accuracy"] == 0.25
    assert base["valid_sql"] == 0.75  # correct, rows and unclear ran; sql_error did not
    assert base["unclear"] == 0.25
    assert base["ended_with_eos"] == 0.75
    assert base["mean_tokens"] == 15
    assert [model["right"] for model in summary["models"].values()] == ["1000", "0110", "1111"]
    assert summary["questions"] == content_hash(["1", "2", "3", "4"])[:16]
    assert base["failures"] == {"sql_error": 1, "rows": 1}
    assert base["unclear_reasons"] == {"volatile": 1}
    assert base["verdicts"] == {"correct": 1, "wrong": 2, "unclear": 1}
    assert {kind: (entry["n"], entry["execution_accuracy"]) for kind, entry in base["by_kind"].items()} == {
        "join": (3, pytest.approx(1 / 3)), "nested": (1, 0.0)}
    assert base["ci95"][0] < 0.25 < base["ci95"][1]
    assert summary["models"]["sft"]["valid_sql"] == 0.5


def test_paired_compares_neighbours_and_first_with_last():
    paired = summarise("test", three_models(), {})["paired"]
    shown = ("before", "after", "gained", "lost")
    assert {key: tuple(entry[name] for name in shown) for key, entry in paired.items()} == {
        "base_sft": ("base", "sft", 2, 1), "sft_dpo": ("sft", "dpo", 2, 0), "base_dpo": ("base", "dpo", 3, 0)}
    two = {name: three_models()[name] for name in ("base", "sft")}
    assert list(summarise("test", two, {})["paired"]) == ["base_sft"]
    assert summarise("test", {"base": two["base"]}, {})["paired"] == {}


def test_names_with_underscores_make_no_comparison_of_another():
    paired = summarise("test", {name: three_models()["base"] for name in ("sft", "dpo_v1", "sft_dpo", "v1")}, {})["paired"]
    assert [(one["before"], one["after"]) for one in paired.values()] == [
        ("sft", "dpo_v1"), ("dpo_v1", "sft_dpo"), ("sft_dpo", "v1"), ("sft", "v1")]


@pytest.mark.parametrize(("results", "message"), [
    ({}, "no model"),
    ({"base": []}, "no question"),
    ({"base": [row("1"), row("2")], "sft": [row("2"), row("1")]}, "part at row 0"),
    ({"base": [row("1"), row("2")], "sft": [row("1")]}, "part at row 1"),
    ({"base": [row("1"), row("1")]}, "more than once"),
    ({"base": [row("1"), row("7", "gold_bad", "unstable")]}, "'7': verdict 'gold_bad'"),
])
def test_results_that_cannot_be_compared_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        summarise("test", results, {})


def test_report_json_is_the_summary_with_null_for_nan(tmp_path):
    facts = {"sft": {"duration_s": float("nan"), "adapter_bytes": 12}, "config": {"folder": Path("runs")}}
    results = three_models()
    summary = summarise("test", results, facts)
    json_path, html_path = write_report(tmp_path / "new", summary, results, facts)
    assert (json_path, html_path) == (tmp_path / "new/report.json", tmp_path / "new/report.html")
    read = json.loads(json_path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    assert {"split", "n", "questions", "models", "paired", "facts"} == set(read)
    assert read["models"] == summary["models"]
    assert read["facts"] == {"sft": {"duration_s": None, "adapter_bytes": 12}, "config": {"folder": "runs"}}


def test_a_failed_write_keeps_the_older_report_and_leaves_nothing_behind(tmp_path, monkeypatch):
    results = three_models()
    summary = summarise("test", results, {})
    write_report(tmp_path, summary, results, {})
    before = (tmp_path / "report.json").read_text()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sft.artefacts.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, summary | {"split": "other"}, results, {})
    assert (tmp_path / "report.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_page_without_facts_has_no_empty_sections():
    results = three_models()
    page = render_page(summarise("test", results, {}), results, {})
    assert "<h2 id=\"training-title\">" not in page
    assert "<h2 id=\"facts-title\">" not in page
    logs = [{"step": 3, "loss": 0.69}, {"step": 4, "loss": float("nan")}]
    partial = {"training": {"dpo": logs}, "pairs": {"kept": 7}}
    page = render_page(summarise("test", results, partial), results, partial)
    assert page.count('<svg class="curve"') == 1
    assert "<dt>Kept</dt><dd>7</dd>" in page


def test_guards_are_drawn_by_step():
    rows = [{"step": 0, "execution_accuracy": 0.4, "valid_sql": 0.9, "ended_with_eos": 1.0, "chosen_logp": -0.2,
             "rejected_logp": -0.4, "margin": 0.0, "mean_tokens": 29.0, "duplicates": 0.0, "limit_passed": None},
            {"step": 10, "execution_accuracy": 0.1, "valid_sql": 0.8, "ended_with_eos": 0.7, "chosen_logp": -0.9,
             "rejected_logp": -1.4, "margin": 0.03, "mean_tokens": 12.5, "duplicates": 0.3, "limit_passed": "at step 10 execution accuracy had fallen"}]
    shares, logps, *others = plots.training_curves({"guards": rows})
    assert [(curve["title"], curve["lines"][0]["first"], curve["lines"][0]["last"]) for curve in others] == [
        ("Guards: reward margin of fixed pairs", "0", "0.03"), ("Guards: length of answers (tokens)", "29", "12.5"),
        ("Guards: share of repeated answers", "0", "0.3")]
    assert [line["name"] for line in shares["lines"]] == ["execution_accuracy", "valid_sql", "ended_with_eos"]
    assert (shares["lines"][0]["first"], shares["lines"][0]["last"]) == ("0.4", "0.1")
    assert (shares["first_step"], shares["last_step"]) == ("0", "10") and shares["drawing"].count("<polyline") == 3
    assert [(line["first"], line["last"]) for line in logps["lines"]] == [("-0.2", "-0.9"), ("-0.4", "-1.4")]
    facts = {"training": {"guards": rows}, "dpo": {"stopped": "training stopped: at step 10"}}
    page = render_page(summarise("test", three_models(), facts), three_models(), facts)
    assert page.count('<svg class="curve"') == 5 and "Guards: shares of development questions" in page
    assert "training stopped: at step 10" in page
    assert all(f".line-{index}" in page for index in range(3)), "three lines, three strokes"


def test_facts_are_written_with_their_units():
    assert text.quantity("trainable_share", 0.0174) == "1.74 %"
    assert text.quantity("adapter_bytes", 3 * 2**20) == "3.0 MiB"
    assert text.quantity("peak_memory_bytes", 2.5 * 2**30) == "2.50 GiB"
    assert text.quantity("duration_s", 3725) == "1 h 02 min"
    assert text.quantity("duration_s", 65) == "1 min 05 s"
    assert text.quantity("forgetting", {"before": 2.0, "after": 2.1}) == "2 → 2.1 (+5.0 %)"
    assert text.quantity("dropped", {"all_correct": 3, "all_wrong": 4}) == "all correct 3, all wrong 4"
    assert text.label("peak_memory_bytes") == "Peak memory"


def test_paired_sentence_in_words():
    paired = summarise("test", three_models(), {})["paired"]["base_sft"]
    sentence = text.paired_sentence(paired)
    assert sentence.startswith("sft gains 2 questions that base got wrong and loses 1 that it had right: net +1, "
                               "or +25.0 points")
    assert sentence.endswith("Errors fall by 33.3 %.")
    assert text.chance(1.0).startswith("This may well be chance: if the two were equally good, 100 of 100")
    assert "once in 50" in text.chance(0.02)
    assert (text.p_value(0.00001), text.p_value(0.0312), text.p_value(0.5)) == ("p < 0.0001", "p = 0.031", "p = 0.50")
    assert text.unbroken("9 % of p = 0.50 up = 1") == "9\xa0% of p\xa0=\xa00.50 up = 1"


def test_ticks_enclose_and_are_round():
    assert plots.ticks(0.12, 0.68) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert plots.ticks(-35, -18.9) == pytest.approx([-35, -30, -25, -20, -15])
    flat = plots.ticks(0.0, 0.0)
    assert flat[0] < 0 < flat[-1]


def test_hidden_characters_are_written_out():
    assert text.visible("a\u202eb\x00\ud800\u200b\u00a0c") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩⟨U+200B⟩⟨U+00A0⟩c"
    assert text.visible("a b\tc\r\nd é 東京 שלום") == "a b\tc\nd é 東京 שלום"


def test_embedded_values_are_bounded_and_exact():
    assert text.embeddable(2**53) == "9007199254740992"
    assert text.embeddable([float("inf"), 1.5, None, b"\x01"]) == ["inf", 1.5, None, "x'01'"]
    assert text.embeddable("x" * 30_000).endswith("(10,000 more characters)")
    assert text.embeddable(list(range(60)))[-1] == "… (10 more)"


def hostile_report():
    results = {}
    for name in ("base", HOSTILE[0]):
        results[name] = [
            row(f"{index} {attack}", "wrong", attack, question=attack, context=attack, gold_sql=attack, kind=[attack],
                completion=attack * 2, sql=attack, trace={attack: [[attack, 1]]})
            for index, attack in enumerate(HOSTILE)]
    facts = {"config": {HOSTILE[0]: HOSTILE[2]}, "versions": {"torch": HOSTILE[4]},
             HOSTILE[0]: {HOSTILE[2]: HOSTILE[0]}, "pairs": {"dropped": {HOSTILE[2]: 1}}}
    return results, facts


def test_hostile_text_stays_text(tmp_path):
    results, facts = hostile_report()
    _, path = write_report(tmp_path, summarise(HOSTILE[0], results, facts), results, facts)
    page = path.read_text("utf-8")
    assert re.findall(r"<\s*/?\s*script[^>]*>", page, re.I) == [
        '<script type="application/json" id="answers">', "</script>", "<script>", "</script>"]
    assert "<img" not in page and "<!--" not in page
    assert not [character for character in page if ord(character) < 32 and character not in "\n\t"]
    assert not re.search("[\u200b\u202a-\u202e\u2028\u2029\ud800]", page)
    question = embedded(page)["questions"][4]
    assert question["question"] == "SELECT '⟨U+202E⟩gpj.exe⟨U+202C⟩' ⟨U+0000⟩⟨U+001B⟩[31m⟨U+0007⟩ ⟨U+D800⟩ ⟨U+200B⟩"
    assert embedded(page)["questions"][0]["answers"][0]["sql"] == HOSTILE[0]


def test_page_is_self_contained_and_allows_only_its_own_script():
    results = three_models()
    page = render_page(summarise("test", results, {}), results, {})
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.findall(r"url\(|@import|https?://", page)
    assert "innerHTML" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_every_control_has_a_name_and_the_filters_exist():
    results = three_models()
    page = render_page(summarise("test", results, {}), results, {})
    form = re.search(r'<form id="filters".*?</form>', page, re.S)[0]
    names = re.findall(r'<(?:input|select)[^>]* name="([^"]+)"', form)
    assert names == ["search", "change", "verdict-0", "verdict-1", "verdict-2", "kind", "differences"]
    assert form.count("<label") == len(names)
    for pair in ("base_sft", "sft_dpo", "base_dpo"):
        for change in ("gained", "lost", "any"):
            assert f'value="{pair}/{change}"' in form


def test_equal_contexts_are_held_once():
    results = three_models()
    page = render_page(summarise("test", results, {}), results, {})
    assert embedded(page)["contexts"] == ["CREATE TABLE t (id INTEGER)"]
    assert page.count("CREATE TABLE t (id INTEGER)") == 1


def test_terminal_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    results = three_models()
    results["[red]x"] = results.pop("dpo")
    print_table(summarise("test", results, {}))
    printed = capsys.readouterr().out
    assert "Execution accuracy on 4 questions (test)" in printed
    assert re.search(r"│ base +│ +25\.0 % │ +4\.6 to 69\.9 │ +75\.0 % │ +25\.0 % │ +75\.0 % │ +15\.0 │", printed)
    assert "[red]x" in printed
    assert "sft gains 2 questions that base got wrong" in printed


@pytest.fixture
def playwright():
    return pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture
def browser(playwright):
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("needs a Chromium browser on the PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def test_in_a_browser_filters_work_and_hostile_text_does_nothing(playwright, browser, tmp_path):
    results = three_models()
    _, path = write_report(tmp_path, summarise("test", results, {}), results, {})
    page = browser.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())

    def shows(*numbers: int) -> None:
        playwright.expect(page.locator("tr.row .question")).to_have_text([f"Question {number}?" for number in numbers])

    shows(1, 2, 3, 4)
    page.get_by_role("link", name="1 lost").first.click()
    shows(1)
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Verdict: base").select_option("wrong/sql_error")
    shows(2)
    details = page.get_by_role("button", name="Details of question 2")
    details.press("Enter")
    playwright.expect(details).to_have_attribute("aria-expanded", "true")
    playwright.expect(page.locator("tr.details")).to_contain_text("cut off before EOS")
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Search").fill("question 3?")
    shows(3)

    results, facts = hostile_report()
    _, path = write_report(tmp_path, summarise(HOSTILE[0], results, facts), results, facts)
    page.goto(path.as_uri())
    for button in page.locator("button.open").all():
        button.click()
    playwright.expect(page.locator("tr.details")).to_have_count(len(HOSTILE))
    assert page.evaluate("window.harmed") is None
    assert HOSTILE[2] in page.locator("tr.details").nth(2).inner_text()
    assert said == []

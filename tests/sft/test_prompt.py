"""The one prompt: its words, its token ids, its hash, and what counts as the query in a completion."""

import pytest

import sft.prompt
from sft.checkpoint import load_tokenizer
from sft.prompt import (
    check_prompt_hash,
    completion_ids,
    prompt_hash,
    prompt_ids,
    read_completion,
    render,
    target_text,
)

CONTEXT = (
    "CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER REFERENCES owner(id));\nCREATE TABLE owner (id INTEGER)"
)
EXAMPLE = {"question": "How many pets?", "context": CONTEXT, "gold_sql": "SELECT COUNT(*) FROM pet", "answerable": True}


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


# ---------------------------------------------------------------------- render


def test_messages_are_exactly_these():
    assert render(EXAMPLE, "ddl") == [
        {"role": "system", "content": "Answer with one SQLite query."},
        {"role": "user", "content": f"{CONTEXT}\nQuestion: How many pets?"},
    ]


def test_compact_style_lists_columns_and_links():
    assert render(EXAMPLE, "compact")[1]["content"] == (
        "pet(id, owner_id)\nowner(id)\npet.owner_id = owner.id\nQuestion: How many pets?"
    )


@pytest.mark.parametrize("schema_style", ["ddl", "compact"])
def test_evidence_stands_between_schema_and_question(schema_style):
    plain = render(EXAMPLE, schema_style)[1]["content"]
    hinted = render({**EXAMPLE, "evidence": "pets are animals"}, schema_style)[1]["content"]
    assert hinted == plain.replace("\nQuestion:", "\nHint: pets are animals\nQuestion:")
    for nothing in (None, ""):
        assert render({**EXAMPLE, "evidence": nothing}, schema_style)[1]["content"] == plain


def test_target_is_the_audited_query_or_the_word_for_none():
    assert target_text({**EXAMPLE, "gold": "select count ( * ) from pet"}) == "SELECT COUNT(*) FROM pet"
    assert target_text({"gold_sql": None, "answerable": False}) == "UNANSWERABLE"


# ------------------------------------------------------------------- token ids


def test_prompt_ids_end_where_the_answer_begins(tokenizer):
    messages = render(EXAMPLE, "compact")
    assert tokenizer.decode(prompt_ids(tokenizer, messages)) == (
        "<|im_start|>system\nAnswer with one SQLite query.<|im_end|>\n"
        f"<|im_start|>user\n{messages[1]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["SELECT COUNT(*) FROM pet", " SELECT 1", "\nSELECT 1", "", "naïve 'x'"])
def test_prompt_and_completion_are_what_the_template_makes_of_the_whole_conversation(tokenizer, text):
    messages = render(EXAMPLE, "ddl")
    prompt, completion = prompt_ids(tokenizer, messages), completion_ids(tokenizer, text)
    whole = list(tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}])["input_ids"])
    assert whole[: len(prompt)] == prompt
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert prompt + completion + newline == whole


def test_completion_ends_with_exactly_one_eos(tokenizer):
    plain = completion_ids(tokenizer, "SELECT 1")
    assert plain[-1] == tokenizer.eos_token_id == 2 and plain.count(2) == 1
    assert completion_ids(tokenizer, "SELECT 1<|im_end|>") == plain
    assert completion_ids(tokenizer, "SELECT 1<|im_end|><|im_end|>") == plain
    assert completion_ids(tokenizer, "") == completion_ids(tokenizer, "<|im_end|>") == [2]


def test_a_template_that_refuses_a_system_message_gets_its_text_from_the_user(tokenizer):
    messages = render(EXAMPLE, "ddl")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    merged = [{"role": "user", "content": f"Answer with one SQLite query.\n{messages[1]['content']}"}]
    wanted = prompt_ids(tokenizer, merged)
    tokenizer.chat_template = refusing + tokenizer.chat_template
    assert prompt_ids(tokenizer, messages) == wanted
    assert tokenizer.decode(wanted).count("Answer with one SQLite query.") == 1


# ------------------------------------------------------------------------ hash


def test_the_hash_changes_with_each_ingredient(tokenizer, monkeypatch):
    wanted = prompt_hash(tokenizer, "ddl", 512)
    assert prompt_hash(tokenizer, "ddl", 512) == wanted and len(wanted) == 16
    found = {wanted, prompt_hash(tokenizer, "compact", 512), prompt_hash(tokenizer, "ddl", 256)}
    monkeypatch.setattr(sft.prompt, "INSTRUCTION", "Answer with SQL.")
    found.add(prompt_hash(tokenizer, "ddl", 512))
    monkeypatch.undo()
    monkeypatch.setattr(sft.prompt, "render", lambda example, style: [{"role": "user", "content": example["evidence"]}])
    found.add(prompt_hash(tokenizer, "ddl", 512))
    monkeypatch.undo()
    monkeypatch.setattr(sft.prompt, "compact_schema", lambda context: "pet(id)")
    found.add(prompt_hash(tokenizer, "compact", 512))
    monkeypatch.undo()
    template = tokenizer.chat_template
    tokenizer.chat_template = template + " "
    found.add(prompt_hash(tokenizer, "ddl", 512))
    tokenizer.chat_template = template
    tokenizer.eos_token = "<|endoftext|>"
    found.add(prompt_hash(tokenizer, "ddl", 512))
    assert len(found) == 8


def test_another_hash_is_refused_with_both_and_the_keys():
    check_prompt_hash("aaaa", "aaaa", "runs/x/sft")
    with pytest.raises(ValueError) as error:
        check_prompt_hash("aaaa", "bbbb", "runs/x/sft")
    message = str(error.value)
    assert "runs/x/sft was made with prompt format aaaa, this run uses bbbb" in message
    assert "prompt.schema_style" in message and "another run folder" in message


def test_the_text_of_eos_within_a_query_is_text(tokenizer):
    end = tokenizer.eos_token
    ids = completion_ids(tokenizer, f"SELECT a FROM t WHERE b = '{end}' LIMIT 1{end}")
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.decode(ids[:-1]) == f"SELECT a FROM t WHERE b = '{end}' LIMIT 1"


# ----------------------------------------------------------- reading a completion


@pytest.mark.parametrize(
    ("completion", "sql"),
    [
        ("SELECT a FROM t", "SELECT a FROM t"),
        ("  select a FROM t ;\n", "select a FROM t"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "WITH x AS (SELECT 1) SELECT * FROM x"),
        ("SELECT a\nFROM t\nWHERE b = ';'", "SELECT a\nFROM t\nWHERE b = ';'"),
        ("```sql\nSELECT a FROM t;\n```", "SELECT a FROM t"),
        ("```\nSELECT a FROM t\n```", "SELECT a FROM t"),
        ("```SELECT a FROM t```", "SELECT a FROM t"),
        ("```sqlite\nSELECT a FROM t", "SELECT a FROM t"),
        ("Here you go:\n```sql\nSELECT a FROM t\n```\nIt lists all.", "SELECT a FROM t"),
        ("The query is: SELECT a FROM t", "SELECT a FROM t"),
        ("SQL: SELECT a FROM t", "SELECT a FROM t"),
        ("```SELECT\n a FROM t```", "SELECT\n a FROM t"),
        ("-- Query: select all names\nSELECT a FROM t", "SELECT a FROM t"),
        ("/* plan: SELECT */\nSELECT a FROM t", "SELECT a FROM t"),
        ("I think:\n\nselect a FROM t WHERE b = 'x: select'", "select a FROM t WHERE b = 'x: select'"),
        ("Sure.\nSELECT a FROM t", "SELECT a FROM t"),
        # Nothing is repaired: what follows the query, or is none, goes to the judge as it is.
        ("SELECT a FROM t; SELECT b FROM t", "SELECT a FROM t; SELECT b FROM t"),
        ("SELECT a FROM t\nThis lists all.", "SELECT a FROM t\nThis lists all."),
        ("I cannot say.", "I cannot say."),
        ("Please select a table", "Please select a table"),
        ("DELETE FROM t", "DELETE FROM t"),
        ("INSERT INTO t\nSELECT 1", "INSERT INTO t\nSELECT 1"),
        ("DROP TABLE t;\nSELECT a FROM t", "DROP TABLE t;\nSELECT a FROM t"),
        ("create table u as\nselect a from t", "create table u as\nselect a from t"),
        ("Update: it is\nSELECT a FROM t", "Update: it is\nSELECT a FROM t"),
        # A word that only begins like one.
        ("SELECTED a FROM t", "SELECTED a FROM t"),
        ("", None),
        ("  \n", None),
        (";", None),
        ("```sql\n```", None),
    ],
)
def test_the_query_in_a_completion(completion, sql):
    assert read_completion(completion) == (sql, False)


@pytest.mark.parametrize("completion", ["UNANSWERABLE", " unanswerable.\n", "Unanswerable"])
def test_the_word_for_no_answer_is_an_abstention(completion):
    assert read_completion(completion) == (None, True)


def test_the_word_inside_a_sentence_or_query_is_not():
    assert read_completion("SELECT 'UNANSWERABLE'") == ("SELECT 'UNANSWERABLE'", False)
    assert read_completion("It is unanswerable, since")[1] is False

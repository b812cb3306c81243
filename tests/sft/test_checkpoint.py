"""Models on disk: tokenizers that can train, adapters that fit their base, and what is saved and refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sft.checkpoint import (
    ADAPTER,
    PROVENANCE,
    attention_implementation,
    base_of,
    checkpoint_hash,
    fingerprint,
    is_adapter,
    load_adapter,
    load_base,
    load_for_inference,
    load_tokenizer,
    precision_dtype,
    read_provenance,
    resolve_model,
    save_adapter,
)

IDS = torch.tensor([[1, 100, 200, 300, 2, 7]])


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model's folder that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit_json(path, **changes):
    """Set keys of a JSON file; None deletes the key."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")


def random_adapter(folder, seed=0, rank=4):
    """The model of a folder with a LoRA adapter whose weights change the logits."""
    model = get_peft_model(
        load_base(folder, precision="fp32"),
        LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model


def provenance_of(folder):
    return {
        "model": str(folder),
        "base_fingerprint": fingerprint(folder),
        "stage": "sft",
        "prompt": {"schema_style": "compact", "max_prompt_tokens": 512},
        "prompt_hash": "0" * 16,
    }


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """(folder of a saved adapter, logits of the model that was saved)."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    model = random_adapter(tiny_model)
    save_adapter(model, load_tokenizer(tiny_model), folder, provenance_of(tiny_model))
    with torch.inference_mode():
        return folder, model.eval()(input_ids=IDS).logits


# ------------------------------------------------------------------- tokenizer


def test_a_tokenizer_pads_on_the_left_with_something_else_than_eos(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (2, 0, "left")


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_padding_that_is_eos_or_missing_is_replaced(copy, pad):
    edit_json(copy / "tokenizer_config.json", pad_token=pad)
    tokenizer = load_tokenizer(copy)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)


def test_a_tokenizer_without_eos_is_refused(copy):
    edit_json(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(
        ValueError, match="tokenizer of .*model has no EOS token, .* Set `eos_token` in its tokenizer_config.json"
    ):
        load_tokenizer(copy)


def test_a_tokenizer_without_chat_template_is_refused(copy):
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(copy / "tokenizer_config.json", chat_template=None)
    with pytest.raises(
        ValueError, match="tokenizer of .*model has no chat template.*instruct version.*chat_template.jinja"
    ):
        load_tokenizer(copy)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=f"no tokenizer could be read from {tmp_path} .*needs tokenizer.json"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------ base models


def test_local_folders_need_a_model(tiny_model, tmp_path):
    assert resolve_model(str(tiny_model)) == str(tiny_model)
    with pytest.raises(ValueError, match="has no config.json. Allowed are .* `model: embedded`"):
        resolve_model(str(tmp_path))
    for name in (str(tmp_path / "none"), "./none", "~/none", "a/b/c"):
        with pytest.raises(ValueError, match=f"there is no folder {name}. Give an existing folder"):
            resolve_model(name)


def test_a_hub_that_cannot_be_reached_points_to_the_embedded_model(monkeypatch):
    import huggingface_hub

    def unreachable(name, **arguments):
        assert "*.safetensors" in arguments["allow_patterns"] and "*.bin" not in arguments["allow_patterns"]
        assert not any(pattern.endswith(".py") for pattern in arguments["allow_patterns"])
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route to the hub\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError) as error:
        resolve_model("someone/model-1b")
    message = str(error.value)
    assert message.startswith("model: someone/model-1b could not be fetched") and "no route to the hub" in message
    assert "`model: embedded`, which needs no hub" in message and "\n" not in message


def test_fingerprint_follows_weights_and_shape_not_the_folder(tiny_model, copy):
    wanted = fingerprint(tiny_model)
    assert len(wanted) == 16 and fingerprint(copy) == wanted
    edit_json(copy / "generation_config.json", temperature=0.5)
    assert fingerprint(copy) == wanted
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    other = fingerprint(copy)
    edit_json(copy / "config.json", hidden_size=65)
    assert len({wanted, other, fingerprint(copy)}) == 3


def test_weights_in_another_format_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \*.safetensors file.*safetensors only.*save_pretrained"):
        fingerprint(copy)
    with pytest.raises(ValueError, match="could not be loaded .*safetensors weights"):
        load_base(copy, precision="fp32")


def test_cut_weights_are_named(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"the model in {copy} could not be loaded"):
        load_base(copy, precision="fp32")


def test_precision_and_attention_on_this_machine():
    assert precision_dtype("fp32") is torch.float32 and precision_dtype("bf16") is torch.bfloat16
    assert precision_dtype("auto") in (torch.float32, torch.bfloat16)
    assert attention_implementation("sdpa") == "sdpa"
    if not torch.cuda.is_available():
        assert attention_implementation("auto") == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_4_bit_without_a_gpu_says_what_to_set(tiny_model):
    with pytest.raises(ValueError, match="train.load_in_4bit: true needs an NVIDIA GPU.*Set it to false"):
        load_base(tiny_model, load_in_4bit=True)


# -------------------------------------------------------------------- adapters


def test_an_adapter_reloads_to_the_same_logits(tiny_model, saved):
    folder, logits = saved
    for trainable in (True, False):
        model = load_adapter(
            load_base(tiny_model, precision="fp32"),
            folder,
            base_fingerprint=fingerprint(tiny_model),
            trainable=trainable,
        ).eval()
        with torch.inference_mode():
            assert torch.equal(model(input_ids=IDS).logits, logits)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert bool(trained) is trainable and all("lora_" in name for name in trained)
    plain = load_base(tiny_model, precision="fp32").eval()
    with torch.inference_mode():
        assert (plain(input_ids=IDS).logits - logits).abs().max() > 0.1


def test_inference_finds_the_base_model_by_itself(tiny_model, saved):
    folder, logits = saved
    model, tokenizer, provenance = load_for_inference(folder, precision="fp32")
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, logits)
    assert not model.training and tokenizer.eos_token_id == 2 and provenance == provenance_of(tiny_model)
    whole, _, nothing = load_for_inference(tiny_model, precision="fp32")
    assert nothing is None and not is_adapter(tiny_model) and type(whole).__name__ == "LlamaForCausalLM"


def test_a_folder_below_home_is_found(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert resolve_model(f"~/{tiny_model.name}") == str(tiny_model)


def test_models_with_other_layers_than_attention_are_refused(tmp_path):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    Lfm2ForCausalLM(Lfm2Config(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                               num_key_value_heads=2, layer_types=["conv", "full_attention"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"the model in {tmp_path} has layers of the kind conv. Sampling here repeats .* Choose a model"):
        load_base(tmp_path)


def test_a_base_model_of_a_relative_folder_is_found_from_elsewhere(tiny_model, copy, tmp_path, monkeypatch):
    said = {"model": "model", "model_folder": str(copy)}
    monkeypatch.chdir(tmp_path)
    assert base_of(said) == "model"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert base_of(said) == str(copy)
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match=f"trained on the model in the folder model, which is neither here nor at {copy}. Put it back"):
        base_of(said)
    assert base_of({"model": str(tiny_model)}) == str(tiny_model)


def test_a_trainable_adapter_stays_in_fp32_beside_a_bf16_base(tiny_model, saved):
    kinds = {}
    for trainable in (True, False):
        model = load_adapter(
            load_base(tiny_model, precision="bf16"),
            saved[0],
            base_fingerprint=fingerprint(tiny_model),
            trainable=trainable,
        )
        kinds[trainable] = {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name}
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}


def test_only_the_default_adapter_is_saved(tiny_model, tmp_path):
    """trl puts a frozen copy named `ref` beside it."""
    model = random_adapter(tiny_model)
    model.add_adapter("ref", model.peft_config["default"])
    save_adapter(model, load_tokenizer(tiny_model), tmp_path / "dpo", provenance_of(tiny_model))
    assert {path.name for path in (tmp_path / "dpo").iterdir()} >= {
        ADAPTER,
        "adapter_config.json",
        PROVENANCE,
        "tokenizer.json",
    }
    assert not [path for path in (tmp_path / "dpo").rglob("*") if path.is_dir() or path.suffix in (".bin", ".pt")]
    weights = load_file(tmp_path / "dpo" / ADAPTER)
    # Seven linear layers in each of two blocks, an A and a B for each.
    assert len(weights) == 2 * 7 * 2 and not any("ref" in name or "default" in name for name in weights)
    assert {tuple(tensor.shape) for name, tensor in weights.items() if "q_proj.lora" in name} == {(4, 64), (64, 4)}


def test_gathered_weights_are_saved_in_place_of_the_models_own(tiny_model, tmp_path):
    model, other = random_adapter(tiny_model, seed=0), random_adapter(tiny_model, seed=1)
    state = {name: parameter.detach() for name, parameter in other.named_parameters() if ".default." in name}
    save_adapter(model, load_tokenizer(tiny_model), tmp_path / "dpo", provenance_of(tiny_model), state)
    with torch.inference_mode():
        wanted = other.eval()(input_ids=IDS).logits
        again = load_for_inference(tmp_path / "dpo", precision="fp32")[0](input_ids=IDS).logits
    assert torch.equal(again, wanted)


def test_partitioned_weights_are_never_saved(tiny_model, tmp_path):
    """Under ZeRO-3 every rank holds empty tensors in place of its weights."""
    model = random_adapter(tiny_model)
    state = {name: torch.empty(0) for name, _ in model.named_parameters() if ".default." in name}
    with pytest.raises(ValueError, match=r"is empty \(28 of 28 tensors hold no numbers\).*Nothing was saved"):
        save_adapter(model, load_tokenizer(tiny_model), tmp_path / "dpo", provenance_of(tiny_model), state)
    assert not (tmp_path / "dpo").exists()


def test_an_adapter_of_another_base_is_refused(tiny_model, saved, copy):
    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError) as error:
        load_adapter(load_base(copy, precision="fp32"), saved[0], base_fingerprint=fingerprint(copy), trainable=False)
    message = str(error.value)
    assert f"{saved[0]} was trained on {tiny_model} ({fingerprint(tiny_model)})" in message
    assert f"not on this base model ({fingerprint(copy)})" in message and f"Set `model: {tiny_model}`" in message


@pytest.mark.parametrize("missing", ["adapter_config.json", PROVENANCE])
def test_a_folder_that_is_no_adapter_of_ours_is_refused(saved, tmp_path, missing):
    folder = shutil.copytree(saved[0], tmp_path / "sft")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match="is not an adapter that this project trained .*accelerate launch sft/run.py"):
        read_provenance(folder)


@pytest.mark.parametrize("damage", ["cut", "gone", "rank", "names"])
def test_a_damaged_adapter_is_refused(tiny_model, saved, tmp_path, damage):
    folder = shutil.copytree(saved[0], tmp_path / "sft")
    weights = folder / ADAPTER
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "rank":
        edit_json(folder / "adapter_config.json", r=8)
    else:
        found = load_file(weights)
        save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in found.items()}, weights)
    with pytest.raises(ValueError, match=f"the adapter in {folder} cannot be loaded.*damaged"):
        load_adapter(
            load_base(tiny_model, precision="fp32"), folder, base_fingerprint=fingerprint(tiny_model), trainable=True
        )


def test_checkpoint_hash_identifies_adapter_and_base(tiny_model, saved, tmp_path):
    wanted = checkpoint_hash(saved[0])
    assert checkpoint_hash(shutil.copytree(saved[0], tmp_path / "same")) == wanted
    assert checkpoint_hash(tiny_model) == fingerprint(tiny_model)
    based = shutil.copytree(saved[0], tmp_path / "based")
    edit_json(based / PROVENANCE, base_fingerprint="f" * 16)
    save_adapter(
        random_adapter(tiny_model, seed=5), load_tokenizer(tiny_model), tmp_path / "other", provenance_of(tiny_model)
    )
    assert len({wanted, checkpoint_hash(tiny_model), checkpoint_hash(based), checkpoint_hash(tmp_path / "other")}) == 4

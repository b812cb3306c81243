"""Models on disk: found by name, loaded whole or with an adapter, saved with what identifies them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sft.artefacts import content_hash, file_hash, library_writes, write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE = "provenance.json"
ADAPTER = "adapter_model.safetensors"


def resolve_model(name: str, trust_remote_code: bool = False) -> str:
    """A folder with the model's files, for `embedded`, a local folder or a hub name.

    Raises ValueError where there is no such folder, or the hub cannot be reached and the model is not in its cache.
    """
    if name == "embedded":
        from sft.embedded.model import embedded_model

        return str(embedded_model())
    if (at_home := Path(name).expanduser()).is_dir():
        name = str(at_home)
        if not (Path(name) / "config.json").exists():
            raise ValueError(
                f"model: the folder {name} has no config.json. Allowed are a folder that save_pretrained wrote, a hub "
                "name such as Qwen/Qwen2.5-Coder-7B-Instruct, or `model: embedded`, which needs no hub."
            )
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model: there is no folder {name}. Give an existing folder, a hub name, or `model: embedded`.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *(["*.py"] if trust_remote_code else [])]
    try:
        return snapshot_download(name, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"model: {name} could not be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name, the network and, for gated models, `hf auth login`; or use "
            "a local folder, or `model: embedded`, which needs no hub."
        ) from None


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer fit for training: it has an EOS and a chat template, and a padding token that is not EOS.

    Raises ValueError where EOS or template is missing.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no tokenizer could be read from {path} ({str(error).splitlines()[0]}). The folder needs tokenizer.json "
            "and tokenizer_config.json; save them with tokenizer.save_pretrained."
        ) from None
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {path} has no EOS token, so a model could never learn to stop. Set `eos_token` in its "
            "tokenizer_config.json (for chat models the token that ends a turn)."
        )
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {path} has no chat template, so there is no way to render a prompt. Use the model's "
            "instruct version, or put a chat_template.jinja into the folder."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # Collators that mask padding by its id would mask EOS too, and the model would never learn to stop.
        spare = next((token for token in ("<|endoftext|>", "<pad>", "<unk>", "<|finetune_right_pad_id|>", "<|pad|>")
                      if token in tokenizer.get_vocab() and token != tokenizer.eos_token), None)
        if spare is not None:
            tokenizer.pad_token = spare
        elif tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def fingerprint(path: str | Path) -> str:
    """What identifies a base model's folder: architecture, sizes of its weight files, and 64 blocks spread over each.

    Blocks of 64 KiB: 8 billion weights take as little time as a million, and a fine-tune, which changes every layer,
    does not pass for its base.
    """
    folder = Path(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = {key: config.get(key) for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    weights = []
    for file in sorted(folder.glob("*.safetensors")):
        size, digest = file.stat().st_size, hashlib.sha256()
        with open(file, "rb") as stream:
            for block in range(64):
                stream.seek(block * max(0, size - (1 << 16)) // 63)
                digest.update(stream.read(1 << 16))
        weights.append([size, digest.hexdigest()])
    if not weights:
        raise ValueError(
            f"{path} has no *.safetensors file. Weights are loaded from safetensors only, since other formats can run "
            "code: convert the model with save_pretrained, or choose another."
        )
    return content_hash([shape, weights])[:16]


def precision_dtype(precision: str):
    """The torch dtype for `bf16`, `fp32` or `auto` (bf16 where the hardware computes it, else fp32)."""
    import torch

    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def attention_implementation(attention: str) -> str:
    """The attention for `auto`: flash attention where it is installed on a GPU, sdpa on other GPUs, eager on the CPU."""
    if attention != "auto":
        return attention
    import torch
    from transformers.utils import is_flash_attn_2_available

    if torch.cuda.is_available():
        return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    # On the CPU the backward pass of sdpa is slower than eager at the lengths of SQL prompts.
    return "eager"


def load_base(path: str | Path, *, precision: str = "auto", attention: str = "auto", load_in_4bit: bool = False,
              trust_remote_code: bool = False, place: str | None = "cpu") -> PreTrainedModel:
    """A causal language model from a folder, weights from safetensors only.

    `place`: device to put it on; None leaves that to the caller (ZeRO-3 partitions it while it loads).
    Raises ValueError where 4-bit loading is asked for and cannot work.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    arguments = {"dtype": precision_dtype(precision), "attn_implementation": attention_implementation(attention),
                 "use_safetensors": True, "trust_remote_code": trust_remote_code}
    if load_in_4bit:
        if not torch.cuda.is_available():
            raise ValueError(
                "train.load_in_4bit: true needs an NVIDIA GPU and bitsandbytes (pip install -e '.[gpu]'); none was "
                "found. Set it to false: LoRA on unquantised weights works on the CPU."
            )
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
        )
        arguments["device_map"] = {"": place}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **arguments)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(
            f"the model in {path} could not be loaded ({str(error).splitlines()[0]}). Allowed are causal language "
            "models with safetensors weights; code that comes with a model runs only with `trust_remote_code: true`."
        ) from None
    if kinds := layer_kinds(model) - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(f"the model in {path} has layers of the kind {', '.join(sorted(kinds))}. Sampling here repeats the cache of a prompt "
                         "for its samples, which is written for attention layers (full, sliding, chunked). Choose a model of those alone.")
    if place is not None and not load_in_4bit:
        model = model.to(place)
    return model


def layer_kinds(model: PreTrainedModel) -> set[str]:
    """What kinds of layers a model has, in transformers' words: `full_attention` alone where its configuration does not say."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter rather than a whole model."""
    return (Path(path) / "adapter_config.json").exists()


def read_provenance(adapter: str | Path) -> dict:
    """What an adapter folder says of itself: model, base fingerprint, prompt format and hash, stage.

    Raises ValueError for a folder without an adapter of this project.
    """
    file = Path(adapter) / PROVENANCE
    if not is_adapter(adapter) or not file.exists():
        raise ValueError(
            f"{adapter} is not an adapter that this project trained (it needs adapter_config.json, {ADAPTER} and "
            f"{PROVENANCE}). Make one with: accelerate launch sft/run.py"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def base_of(provenance: dict, trust_remote_code: bool = False) -> str:
    """A folder with the base model of an adapter: the model as it was named in training, or, where that was a folder by a
    relative path and is not here, the place where it was then. ValueError where it is in neither.
    """
    name, folder = provenance["model"], provenance.get("model_folder")
    if folder is None or Path(name).is_dir():
        return resolve_model(name, trust_remote_code)
    if not Path(folder).is_dir():
        raise ValueError(f"the adapter was trained on the model in the folder {name}, which is neither here nor at {folder}. Put it back, "
                         f"or work in the folder from which {name} is found.")
    return resolve_model(folder, trust_remote_code)


def load_adapter(base: PreTrainedModel, adapter: str | Path, *, base_fingerprint: str, trainable: bool) -> PeftModel:
    """A base model with the adapter of a folder on it, named `default`.

    Raises ValueError where the adapter was trained on another base model, or its weights do not fit this one.
    """
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open
    from transformers.integrations import is_deepspeed_zero3_enabled

    provenance = read_provenance(adapter)
    if provenance["base_fingerprint"] != base_fingerprint:
        raise ValueError(
            f"the adapter in {adapter} was trained on {provenance['model']} ({provenance['base_fingerprint']}), not on "
            f"this base model ({base_fingerprint}). Set `model: {provenance['model']}`, or train an adapter for this one."
        )
    try:
        with safe_open(Path(adapter) / ADAPTER, framework="pt") as file:
            held = set(file.keys())
        # Trained weights are kept in fp32 beside a bf16 base, except under ZeRO-3, which fails on mixed dtypes
        # (DeepSpeed #8072); for inference the base's dtype is faster.
        autocast = trainable and not is_deepspeed_zero3_enabled()
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable, autocast_adapter_dtype=autocast)
        needed = {name.replace(".default.", ".") for name, _ in model.named_parameters() if ".default." in name}
        if held != needed:
            # peft only warns of weights that are missing, and passes over those that fit nowhere.
            raise ValueError(f"weights missing: {len(needed - held)}, weights that fit nowhere: {len(held - needed)}")
        return model
    except (RuntimeError, KeyError, OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {adapter} cannot be loaded onto its base model ({str(error).splitlines()[0]}). It is "
            "damaged: delete the folder and train it again."
        ) from None


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, provenance: dict,
                 state: dict | None = None) -> None:
    """Save the `default` adapter alone (never the frozen `ref` beside it), its tokenizer and its provenance.

    `state`: the adapter's full weights where the model's own are partitioned (ZeRO-3).
    Raises ValueError where what is to be saved holds no weights.
    """
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, state_dict=state, adapter_name="default")
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if not weights or empty:
        raise ValueError(
            f"the adapter for {folder} is empty ({len(empty)} of {len(weights)} tensors hold no numbers): its partitions "
            "were not gathered. Nothing was saved."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with library_writes(folder):
        model.save_pretrained(str(folder), selected_adapters=["default"], safe_serialization=True, state_dict=state)
        tokenizer.save_pretrained(str(folder))
    write_json(folder / PROVENANCE, provenance)


def checkpoint_hash(path: str | Path) -> str:
    """What identifies the weights that sampled: hash of an adapter's file and its base, or a base model's fingerprint."""
    if is_adapter(path):
        return content_hash([file_hash(Path(path) / ADAPTER), read_provenance(path)["base_fingerprint"]])[:16]
    return fingerprint(path)


def release_memory() -> None:
    """Give back what models that are no longer referred to hold, on the GPU too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_for_inference(path: str | Path, *, precision: str = "auto", attention: str = "auto",
                       trust_remote_code: bool = False, merge: bool = False, place: str = "cpu"):
    """(model, tokenizer, provenance or None) of a whole model's folder or of an adapter's, ready to generate.

    An adapter that was trained on a 4-bit base gets one again, where there is a GPU to hold it. `merge` adds the adapter
    to the base's weights, which generates faster, and rounds what it adds to the base's precision.
    """
    import torch

    provenance = read_provenance(path) if is_adapter(path) else None
    base_path = base_of(provenance, trust_remote_code) if provenance else resolve_model(str(path), trust_remote_code)
    in_4bit = bool(provenance and provenance.get("load_in_4bit")) and torch.cuda.is_available()
    model = load_base(base_path, precision=precision, attention=attention, load_in_4bit=in_4bit,
                      trust_remote_code=trust_remote_code, place=place)
    if provenance:
        model = load_adapter(model, path, base_fingerprint=fingerprint(base_path), trainable=False)
        if merge and not in_4bit:
            model = model.merge_and_unload()
    return model.eval(), load_tokenizer(path if provenance else base_path, trust_remote_code), provenance

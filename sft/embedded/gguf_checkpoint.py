"""A GGUF file of SmolLM2 (Llama architecture, byte-level BPE) written as a Hugging Face checkpoint, in one pass.

transformers can read such a file too, but goes through it three times and does not know SmolLM's pre-tokenizer. Here
every tensor is read once, dequantised, renamed and saved.

torch, transformers, tokenizers and gguf are imported inside the functions, so that importing this file costs nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig

END_OF_TURN = "<|im_end|>"
# Padding must differ from the end token: a collator that masks padding would otherwise mask the end of every
# completion, and the model would never learn to stop. <|endoftext|> separated documents in pre-training, has a row in
# the embedding already, and never stands in a chat.
PADDING = "<|endoftext|>"

# GGUF name -> Llama name, within a layer and outside the layers.
LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of a special token


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of `gguf_file` into the existing `folder`.

    Quantised tensors become their exact float32 values, which are then rounded to bfloat16.

    Raises:
        ValueError: the file is not of the Llama architecture with tied embeddings, not of SmolLM's tokenizer, lacks
            <|im_end|> or <|endoftext|>, or its tensors do not fit its metadata.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    required = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    for key, allowed in required.items():
        if metadata.get(key) != allowed:
            raise unsuitable(gguf_file, f"{key} is {metadata.get(key)!r}", f"it must be {allowed!r}")
    control = control_tokens(metadata)
    for token in (END_OF_TURN, PADDING):
        if token not in control:
            raise unsuitable(gguf_file, f"no special token {token!r}", f"{END_OF_TURN!r} and {PADDING!r} are needed")

    config = llama_config(metadata)
    state = llama_state(reader, config)
    check_shapes(gguf_file, state, config)
    save_model(state, config, folder)
    save_tokenizer(metadata, folder)


def unsuitable(gguf_file: Path, found: str, allowed: str) -> ValueError:
    """The error for a GGUF file that this conversion does not cover."""
    return ValueError(f"{gguf_file.name}: {found}; {allowed}. Use an undamaged GGUF file of SmolLM2-Instruct")


def control_tokens(metadata: dict) -> list[str]:
    """The vocabulary's special tokens, in the order of their ids."""
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    return [token for token, token_type in pairs if token_type == CONTROL_TOKEN]


def llama_config(metadata: dict) -> LlamaConfig:
    """The `LlamaConfig` that the GGUF metadata describes, with tied embeddings."""
    import numpy
    from transformers import LlamaConfig

    tokens = metadata["tokenizer.ggml.tokens"]
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=len(tokens),
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        # The file holds 1e-05 in float32; str() gives back the short decimal that was meant.
        rms_norm_eps=float(str(numpy.float32(metadata["llama.attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": float(metadata["llama.rope.freq_base"])},
        tie_word_embeddings=True,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=tokens.index(END_OF_TURN),
        pad_token_id=tokens.index(PADDING),
    )


def llama_state(reader: GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The file's tensors under their Llama names, in bfloat16. An unknown name is kept: `check_shapes` refuses it."""
    import torch
    from gguf.quants import dequantize

    head_count = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)  # float32, [out, in] or [out]
        module, _, kind = tensor.name.rpartition(".")  # blk.0.attn_q, weight
        if module.startswith("blk."):
            _, layer, part = module.split(".", 2)
            if part in head_count:
                values = undo_rope_permutation(values, head_count[part])
            module = f"model.layers.{layer}.{LAYER_MODULES.get(part, part)}"
        else:
            module = OUTER_MODULES.get(module, module)
        state[f"{module}.{kind}"] = torch.tensor(values, dtype=torch.bfloat16)
    return state


def undo_rope_permutation(weight: numpy.ndarray, head_count: int) -> numpy.ndarray:
    """A query or key weight `[heads * head_dim, in]` with the rows of each head in the order of Hugging Face's Llama.

    llama.cpp rotates row 2i with row 2i + 1, Hugging Face row i with row i + head_dim / 2, so a head of four rows that
    Hugging Face calls 0, 1, 2, 3 stands in the file as 0, 2, 1, 3.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(head_count, rows // head_count // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def check_shapes(gguf_file: Path, state: dict[str, torch.Tensor], config: LlamaConfig) -> None:
    """Compare names and shapes with those of the model that `config` describes.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):  # shapes without memory
        expected = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected | found):
        if found.get(name) != expected.get(name):
            raise unsuitable(
                gguf_file,
                f"the tensor {name} is {found.get(name, 'missing')}",
                f"by the file's metadata it must be {expected.get(name, 'absent')}",
            )


def save_model(state: dict[str, torch.Tensor], config: LlamaConfig, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors`."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    config.save_pretrained(folder)
    special_ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special_ids).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes files that only their owner may read, even in a cache that several people share.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def save_tokenizer(metadata: dict, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the latter with the chat template.

    SmolLM2 first cuts every digit off by itself, then splits as GPT-2 does: "a  12" is "a", two blanks as one token,
    "1", "2". transformers' own GGUF loader leaves the first step out, which gives other ids ("a", " ", " ", "1", "2")
    where several blanks or line ends stand before a digit.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in control_tokens(metadata)]
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=metadata["tokenizer.chat_template"],
    ).save_pretrained(folder, save_jinja_files=False)

"""Fixtures that several test files share."""

from pathlib import Path

import pytest

# A little of what the project's prompts and completions look like, enough to learn some merges from.
TINY_CORPUS = [
    "SELECT name FROM employee WHERE salary > 1000 ORDER BY name LIMIT 5",
    "SELECT COUNT(*) FROM orders WHERE city = 'Lisbon' AND total BETWEEN 10 AND 20",
    "SELECT c.name, AVG(o.total) FROM customer AS c JOIN orders AS o ON c.id = o.customer_id GROUP BY c.name",
    "SELECT DISTINCT city FROM customer WHERE name LIKE 'A%' AND city IS NOT NULL",
    "CREATE TABLE employee (id INTEGER PRIMARY KEY, name TEXT, salary REAL, city TEXT)",
    "How many employees earn more than the average salary?",
    "List the names of all customers who live in the city of Lisbon.",
    "What is the total of the orders that each customer placed?",
    "Answer the question with one SQLite query. Schema: Question: SQL:",
]
# ChatML as SmolLM2 and Qwen use it, without a system prompt of its own.
TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama checkpoint with the embedded model's conventions, for tests that need some model.

    2 layers, hidden size 64, 4 heads over 2 key-value heads, at most 512 tokens of byte-level BPE, float32. The special
    tokens have SmolLM2's ids: <|endoftext|> 0 (padding), <|im_start|> 1, <|im_end|> 2 (end). Read only: copy the folder
    before changing anything in it.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_CORPUS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=TINY_CHAT_TEMPLATE,
    ).save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder

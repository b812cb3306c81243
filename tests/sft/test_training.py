"""Stage one's training: exact ids and labels, what trl really trains on, losses by hand, the best checkpoint kept."""

import json

import pytest
import torch
import trl.trainer.utils
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

import sft.training
from sft.artefacts import content_hash
from sft.checkpoint import load_base, load_tokenizer
from sft.evaluation import answer
from sft.order import global_batches
from sft.packed_attention import packs_accepted
from sft.scoring import score_completion_only
from sft.training import (
    completion_collator,
    general_text_loss,
    in_training_order,
    last_whole_checkpoint,
    lora_model,
    mark_checkpoint,
    tokenized_rows,
    train,
)

CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
LIMITS = {"schema_style": "compact", "max_prompt_tokens": 512, "max_completion_tokens": 96}
GOLD = {
    "How many pets?": "SELECT COUNT(*) FROM pet",
    "Name every pet.": "SELECT name FROM pet",
    "Name the pets older than three, oldest first.": "SELECT name FROM pet WHERE age > 3 ORDER BY age DESC",
    "What is the mean age of a pet?": "SELECT AVG(age) FROM pet",
}


def example(question, gold):
    return {
        "example_id": question,
        "question": question,
        "context": CONTEXT,
        "gold_sql": gold,
        "answerable": gold is not None,
    }


EXAMPLES = [example(question, gold) for question, gold in GOLD.items()]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return tokenized_rows(tokenizer, EXAMPLES, **LIMITS)


@pytest.fixture
def model(tiny_model):
    base = load_base(tiny_model, precision="fp32")
    return lora_model(base, rank=8, alpha=16, dropout=0.0, gradient_checkpointing=False, seed=0)


def trainer_of(model, tokenizer, rows, folder):
    """A trainer as stage one makes it, to ask for batches and losses."""
    arguments = SFTConfig(
        output_dir=str(folder),
        bf16=False,
        use_cpu=True,
        max_length=None,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(rows),
        train_sampling_strategy="sequential",
        report_to="none",
    )
    dataset = in_training_order(rows, epochs=1, global_batch_size=len(rows), questions_per_pack=1, seed=0)
    return SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)


# -------------------------------------------------------------- ids and labels


def test_ids_and_labels_are_exactly_these(tokenizer):
    [row] = tokenized_rows(tokenizer, EXAMPLES[:1], **LIMITS)
    prompt = (
        "<|im_start|>system\nAnswer with one SQLite query.<|im_end|>\n<|im_start|>user\npet(name, age)\n"
        "Question: How many pets?<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    gold_ids = tokenizer("SELECT COUNT(*) FROM pet", add_special_tokens=False)["input_ids"]
    assert row == {
        "input_ids": [*prompt_ids, *gold_ids, 2],
        "labels": [-100] * len(prompt_ids) + [*gold_ids, 2],
        "schema": content_hash(CONTEXT)[:16],
    }
    # SELECT is one token of the tiny vocabulary; the system and user turns end with ids that are no labels.
    assert tokenizer.decode(row["labels"][len(prompt_ids)]) == "SELECT" and row["input_ids"].count(2) == 3


def test_a_question_without_answer_teaches_the_word(tokenizer):
    [row] = tokenized_rows(tokenizer, [example("Who is the king?", None)], **LIMITS)
    taught = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(taught) == "UNANSWERABLE<|im_end|>"


def test_rows_at_the_limits_stay_and_longer_ones_are_counted(tokenizer, rows, capsys):
    prompts = [row["labels"].count(-100) for row in rows]
    answers = [len(row["labels"]) - prompt for row, prompt in zip(rows, prompts, strict=True)]
    many = EXAMPLES[:2] * 20 + EXAMPLES[2:3]
    limits = {
        "schema_style": "compact",
        "max_prompt_tokens": max(prompts[:2]),
        "max_completion_tokens": max(answers[:2]),
    }
    assert prompts[2] > limits["max_prompt_tokens"] and answers[2] > limits["max_completion_tokens"]
    capsys.readouterr()
    assert len(tokenized_rows(tokenizer, many, **limits)) == 40
    assert capsys.readouterr().out == (
        f"training rows: 41 read, 40 kept, 1 dropped as too long (prompt over {max(prompts[:2])} or answer over "
        f"{max(answers[:2])} tokens)\n"
    )
    # Each limit counts by itself.
    for limit in ("max_prompt_tokens", "max_completion_tokens"):
        assert len(tokenized_rows(tokenizer, many, **LIMITS | {limit: limits[limit]})) == 40


def test_tokens_are_kept_by_content(tokenizer, rows, tmp_path, monkeypatch):
    assert tokenized_rows(tokenizer, EXAMPLES, **LIMITS, keep=tmp_path) == rows
    [kept] = tmp_path.iterdir()
    with monkeypatch.context() as patch:  # a second start reads them
        patch.setattr("sft.training.prompt_ids", None)
        assert tokenized_rows(tokenizer, EXAMPLES, **LIMITS, keep=tmp_path) == rows
    # Another question, and another style, are other content.
    other = [EXAMPLES[0] | {"question": "How many queens are there?"}, *EXAMPLES[1:]]
    assert tokenized_rows(tokenizer, other, **LIMITS, keep=tmp_path) != rows
    tokenized_rows(tokenizer, EXAMPLES, **LIMITS | {"schema_style": "ddl"}, keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and kept.exists()


def test_more_than_a_twentieth_lost_is_an_error(tokenizer, rows):
    shorter = LIMITS | {"max_completion_tokens": 20}
    many = EXAMPLES[:1] * 18 + EXAMPLES[2:3]
    assert len(tokenized_rows(tokenizer, EXAMPLES[:1] * 19 + EXAMPLES[2:3], **shorter)) == 19
    with pytest.raises(ValueError) as error:
        tokenized_rows(tokenizer, many, **shorter)
    message = str(error.value)
    assert "1 of 19 training rows are longer than prompt.max_prompt_tokens 512 or evaluate.max_new_tokens 20" in message
    assert "at most 5% may be lost" in message and "prompt.schema_style: compact" in message


def test_rows_stand_in_the_order_of_global_batches(rows):
    lengths = [len(row["input_ids"]) for row in rows]
    order = global_batches(lengths, epochs=3, global_batch_size=2, groups=["pet"] * 4, group_size=4, seed=4)
    found = in_training_order(rows, epochs=3, global_batch_size=2, questions_per_pack=4, seed=4)
    assert found.to_list() == [rows[index] for index in order]


# ---------------------------------------------------------------------- losses


def plain_loss(model, row):
    """(summed, count): cross-entropy of the completion's tokens from a plain forward, without trl."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
    logp = logits.log_softmax(-1)
    taught = [(place, token) for place, token in enumerate(row["labels"]) if token != -100]
    return -sum(logp[place - 1, token].item() for place, token in taught), len(taught)


def test_the_loss_is_the_mean_over_completion_tokens_and_no_padding_changes_it(model, tokenizer, rows, tmp_path):
    by_hand = [plain_loss(model, row) for row in rows]
    score_completion_only()
    trainer = trainer_of(model, tokenizer, rows, tmp_path)
    alone = [trainer.compute_loss(trainer.model, trainer.data_collator([row])).item() for row in rows]
    assert alone == pytest.approx([total / count for total, count in by_hand], abs=1e-5)
    batch = trainer.data_collator(rows)
    assert (batch["input_ids"] == tokenizer.pad_token_id).any()
    together = trainer.compute_loss(trainer.model, batch).item()
    assert together == pytest.approx(sum(total for total, _ in by_hand) / sum(count for _, count in by_hand), abs=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_that_share_their_schema_lose_what_they_lose_alone(tiny_model, tokenizer, rows, tmp_path, attention):
    """All on one schema, in one tree."""
    model = load_base(tiny_model, precision="fp32", attention=attention)
    with torch.no_grad():  # attention strong enough that a row which saw another would show it
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    by_hand = [plain_loss(model, row) for row in rows]
    trainer = trainer_of(model, tokenizer, rows, tmp_path)
    batch = completion_collator(tokenizer, share_prompts=True)(rows)
    assert batch["pack"]["lines"].shape[0] == 1
    assert batch["pack"]["input_ids"].shape[1] < 0.7 * sum(len(row["input_ids"]) for row in rows)
    wanted = sum(total for total, _ in by_hand) / sum(count for _, count in by_hand)
    with packs_accepted(model):
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_changed_row_moves_no_other_rows_loss(tiny_model, tokenizer, rows, tmp_path, attention):
    """The answer of one row after the other gets another first token: only that row's log-probabilities change."""
    model = load_base(tiny_model, precision="fp32", attention=attention)
    trainer = trainer_of(model, tokenizer, rows, tmp_path)
    collate = completion_collator(tokenizer, share_prompts=True)

    def row_losses(given):
        with packs_accepted(model), torch.no_grad():
            return -trainer.model(**collate(given), fused_lm_head=True).log_probs.sum(dim=1)

    before = row_losses(rows)
    for number, row in enumerate(rows):
        place = row["labels"].count(-100)
        ids, labels = ([*row[name][:place], 99, *row[name][place + 1 :]] for name in ("input_ids", "labels"))
        changed = [*rows[:number], {"input_ids": ids, "labels": labels}, *rows[number + 1 :]]
        moved = (row_losses(changed) - before).abs() > 1e-5
        assert moved.tolist() == [other == number for other in range(len(rows))]


def test_scoring_the_completion_only_changes_neither_loss_nor_gradients(model, tokenizer, rows, tmp_path, monkeypatch):
    found = []
    for only in (False, True):
        monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: False)
        monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)
        if only:
            score_completion_only()
        trainer = trainer_of(model, tokenizer, rows, tmp_path)
        with torch.no_grad():  # B is zero at first, and with it the gradient of A
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        model.zero_grad()
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        loss.backward()
        found.append(
            (
                loss.item(),
                {
                    name: parameter.grad.clone()
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad
                },
            )
        )
    (full_loss, full), (loss, gradients) = found
    assert loss == pytest.approx(full_loss, abs=1e-6)
    assert full.keys() == gradients.keys() and len(full) == 28
    for name in full:
        assert full[name].abs().max() > 1e-5, name
        assert torch.allclose(full[name], gradients[name], atol=1e-6), name


def test_general_text_loss_is_that_of_guessing_for_a_random_model(tiny_model, tokenizer):
    """A random model knows nothing: about the logarithm of its vocabulary, 483 tokens, on text it never saw."""
    loss = general_text_loss(load_base(tiny_model, precision="fp32"), tokenizer)
    assert loss == pytest.approx(torch.log(torch.tensor(483.0)).item(), abs=0.1)
    assert general_text_loss(load_base(tiny_model, precision="bf16"), tokenizer) == pytest.approx(loss, abs=0.02)


def test_general_text_loss_by_hand(tiny_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sft.training, "GENERAL_TEXT", tmp_path / "text.txt")
    lines = ["The bridge is old.", "Rain fell on the city of Lisbon all day."]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = load_base(tiny_model, precision="fp32").eval()
    rows = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    sums = [plain_loss(model, {"input_ids": ids, "labels": [-100, *ids[1:]]}) for ids in rows]
    wanted = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert general_text_loss(model, tokenizer) == pytest.approx(wanted, abs=1e-5)


# ------------------------------------------------------------------------ LoRA


def test_lora_is_on_every_linear_layer_and_starts_at_the_base_model(tiny_model, model):
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)
    assert {layer for layer in layers for name in trained if f".{layer}." in name} == set(layers)
    # Rank 8 on [64 -> 64, 32, 32, 64, 128, 128] and [128 -> 64], in two blocks.
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert model.get_nb_trainable_parameters()[0] == 2 * 8 * sum(map(sum, shapes))
    ids = torch.tensor([[1, 5, 9, 2]])
    base = load_base(tiny_model, precision="fp32")
    with torch.inference_mode():
        assert torch.equal(model.eval()(input_ids=ids).logits, base.eval()(input_ids=ids).logits)


def test_the_seed_decides_the_adapter(tiny_model):
    def first(seed):
        model = lora_model(
            load_base(tiny_model, precision="fp32"),
            rank=4,
            alpha=8,
            dropout=0.0,
            gradient_checkpointing=False,
            seed=seed,
        )
        return next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)

    same = first(3)
    assert torch.equal(first(3), same) and not torch.equal(first(4), same)


# -------------------------------------------------------------------- training


def settings(**changes):
    return {
        "share_prompts": True,
        "questions_per_pack": 1,
        "epochs": 4,
        "learning_rate": 5e-3,
        "warmup_share": 0.1,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "gradient_checkpointing": False,
        "evaluations": 2,
        "seed": 0,
        "bf16": False,
        "trl": {},
    } | changes


def test_trl_trains_on_exactly_our_rows_in_our_order(model, tokenizer, rows, tmp_path, monkeypatch):
    seen, compute_loss = [], SFTTrainer.compute_loss

    def watched(self, model, inputs, *arguments, **more):
        for row, held in enumerate(inputs["attention_mask"] == 1):
            assert (inputs["labels"][row][~held] == -100).all()
            seen.append({name: inputs[name][row][held].tolist() for name in ("input_ids", "labels")})
        return compute_loss(self, model, inputs, *arguments, **more)

    monkeypatch.setattr(SFTTrainer, "compute_loss", watched)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = train(
        model,
        tokenizer,
        rows,
        tmp_path / "checkpoints",
        evaluate=lambda step: {"execution_accuracy": step / 10},
        **settings(),
    )
    wanted = in_training_order(rows, epochs=4, global_batch_size=4, questions_per_pack=1, seed=0)
    assert seen == wanted.remove_columns("schema").to_list() and len(seen) == 16
    assert result["steps"] == 4 and result["best_step"] == 4
    assert (
        json.loads((tmp_path / "checkpoints" / "evaluations.json").read_text())
        == result["evaluations"]
        == {
            "2": {"execution_accuracy": 0.2},
            "4": {"execution_accuracy": 0.4},
        }
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


def test_the_last_step_is_evaluated_even_where_steps_do_not_divide(model, tokenizer, rows, tmp_path):
    asked = []
    train(
        model,
        tokenizer,
        rows,
        tmp_path,
        evaluate=lambda step: asked.append(step) or {"execution_accuracy": 0.5},
        **settings(epochs=5, evaluations=2),
    )
    assert asked == [3, 5]


def test_packs_and_micro_batches_do_not_change_what_is_learned(tiny_model, tokenizer, rows, tmp_path):
    """One row at a time, all four in one batch, and all four in one tree: the same losses and weights."""
    found = []
    for number, (micro, shared, attention) in enumerate(
        [(1, False, "eager"), (4, False, "sdpa"), (4, True, "eager"), (2, True, "sdpa")]
    ):
        base = load_base(tiny_model, precision="fp32", attention=attention)
        model = lora_model(base, rank=8, alpha=16, dropout=0.0, gradient_checkpointing=False, seed=0)
        result = train(
            model,
            tokenizer,
            rows,
            tmp_path / str(number),
            evaluate=lambda step: {"execution_accuracy": 1.0},
            **settings(micro_batch_size=micro, share_prompts=shared, questions_per_pack=4),
        )
        losses = [row["loss"] for row in result["log"] if "loss" in row]
        # Four rows of one schema, so that every order holds the same rows in every batch.
        weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        found.append((losses, weights))
    assert len(found[0][0]) == 4 and found[0][0][3] < found[0][0][0]
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-4)
        assert all(torch.allclose(weights[name], found[0][1][name], atol=5e-4) for name in weights)


def test_a_checkpoint_without_its_mark_is_passed_over(tmp_path):
    assert last_whole_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_whole_checkpoint(tmp_path) is None
    mark_checkpoint(tmp_path, 9)
    mark_checkpoint(tmp_path, 10)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tiny_model, tokenizer, rows, tmp_path):
    """Stopped after the checkpoint of step 2 and before its evaluation was kept."""

    def run(folder, evaluate):
        base = load_base(tiny_model, precision="fp32")
        model = lora_model(base, rank=8, alpha=16, dropout=0.0, gradient_checkpointing=False, seed=0)
        result = train(model, tokenizer, rows, folder, evaluate=evaluate, **settings())
        return result, {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

    def stop(step):
        raise KeyboardInterrupt

    def score(step):
        asked.append(step)
        return {"execution_accuracy": step / 10}

    asked = []
    wanted, weights = run(tmp_path / "whole", score)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop)
    again, resumed = run(tmp_path / "stopped", score)
    assert asked == [2, 4, 2, 4] and again["evaluations"] == wanted["evaluations"]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.parametrize(("accuracies", "best"), [((0.5, 0.4), 2), ((0.5, 0.5), 2), ((0.4, 0.5), 4)])
def test_the_model_ends_with_the_weights_of_its_best_evaluation(model, tokenizer, rows, tmp_path, accuracies, best):
    """Of two equal evaluations the earlier one: it has drifted less."""
    given = dict(zip((2, 4), accuracies, strict=True))
    result = train(
        model, tokenizer, rows, tmp_path, evaluate=lambda step: {"execution_accuracy": given[step]}, **settings()
    )
    assert result["best_step"] == best
    held = {
        name.replace(".default.", "."): parameter for name, parameter in model.named_parameters() if "lora_" in name
    }
    for step in (2, 4):
        saved = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert saved.keys() == held.keys()
        assert all(torch.equal(saved[name], held[name]) for name in saved) is (step == best)


def test_a_tiny_model_learns_its_rows_and_when_to_stop(tiny_model, tokenizer, rows, tmp_path):
    base = load_base(tiny_model, precision="fp32")
    with torch.no_grad():  # the random model's logits are too small to ever be sure of a token
        base.model.norm.weight.mul_(12)
    model = lora_model(base, rank=32, alpha=64, dropout=0.0, gradient_checkpointing=False, seed=0)

    def evaluate(step):
        answers = answer(model, tokenizer, EXAMPLES, schema_style="compact", max_new_tokens=30, batch_size=4)
        return {
            "execution_accuracy": sum(row["sql"] == gold for row, gold in zip(answers, GOLD.values(), strict=True)) / 4
        }

    result = train(
        model, tokenizer, rows, tmp_path, evaluate=evaluate, **settings(epochs=60, learning_rate=5e-3, evaluations=1)
    )
    assert result["evaluations"] == {"60": {"execution_accuracy": 1.0}}
    losses = [row["loss"] for row in result["log"] if "loss" in row]
    assert losses[0] > 4 and losses[-1] < 0.1
    answers = answer(model, tokenizer, EXAMPLES, schema_style="compact", max_new_tokens=30, batch_size=2)
    assert [row["completion"] for row in answers] == list(GOLD.values()) and all(
        row["ended_with_eos"] for row in answers
    )

"""Shared prompts and kept references: losses and gradients are plain trl's, whatever the loss."""

import json
from functools import partial

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
from preference.reference import ReferenceLogps
from sft.checkpoint import load_base, load_tokenizer
from sft.configuration import DpoTrain
from sft.fused_lora import fuse_lora
from sft.packed_attention import packs_accepted
from sft.scoring import score_completion_only
from sft.training import lora_model

SCHEMA = [1, *range(40, 60)]
# Two pairs of one question that share their chosen side, another question on the same schema, and one on its own.
ROWS = [
    {"prompt_ids": [*SCHEMA, 61, 62, 63], "chosen_ids": [70, 71, 72, 2], "rejected_ids": [70, 71, 73, 74, 75, 2]},
    {"prompt_ids": [*SCHEMA, 61, 62, 63], "chosen_ids": [70, 71, 72, 2], "rejected_ids": [76, 2]},
    {"prompt_ids": [*SCHEMA, 64], "chosen_ids": [77, 78, 79, 80, 81, 2], "rejected_ids": [77, 2]},
    {"prompt_ids": [1, 90, 91, 92, 93], "chosen_ids": [77, 2], "rejected_ids": [82, 83, 2]},
]
for _row in ROWS:
    _row |= {"sft_chosen_logps": None, "sft_rejected_logps": None}
LOSSES = DpoTrain.model_fields["loss_type"].annotation.__args__[0].__args__


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(autouse=True)
def trls_own_head(monkeypatch):
    """Undo what scoring the completion only changes in trl, so that each test starts with trl as it comes."""
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: False)
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)


def trainer_of(trainer_class, tiny_model, tokenizer, folder, attention="eager", **more):
    """A trainer whose policy has moved away from its reference, the same for every class."""
    model = lora_model(load_base(tiny_model, precision="fp32", attention=attention), rank=4, alpha=12, dropout=0.0,
                       gradient_checkpointing=False, seed=0)
    randomise(model, 1)
    arguments = DPOConfig(output_dir=str(folder), per_device_train_batch_size=len(ROWS), beta=0.3, bf16=False, use_cpu=True,
                          max_length=None, gradient_checkpointing=False, report_to="none", label_smoothing=0.1)
    trainer = trainer_class(model=model, args=arguments, processing_class=tokenizer, **more)
    randomise(model, 2)
    return trainer


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and ".default." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


class PlainTrainer(DPOTrainer):
    """trl's own, on rows that are token ids already."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset


def plain_trl(tiny_model, tokenizer, folder):
    data = Dataset.from_list([{name: row[name] for name in row if name.endswith("_ids")} for row in ROWS])
    return trainer_of(PlainTrainer, tiny_model, tokenizer, folder, train_dataset=data)


def ours(tiny_model, tokenizer, folder, attention="eager"):
    trainer = trainer_of(ExecutionDPOTrainer, tiny_model, tokenizer, folder, attention,
                         train_dataset=Dataset.from_list(ROWS),
                         data_collator=preference_collator(tokenizer, share_prompts=True))
    trainer.start = {}  # the first step is over
    fuse_lora(trainer.model)
    return trainer


def loss_and_gradients(trainer, batch, loss_types, ld_alpha=None, weighting=False):
    trainer.loss_types, trainer.loss_weights = loss_types, [1.0, 0.5][: len(loss_types)]
    trainer.ld_alpha, trainer.use_weighting = ld_alpha, weighting
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    return loss.item(), {name: parameter.grad.clone() for name, parameter in trained.items()}


def last_metrics(trainer):
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_loss_has_trls_value_gradients_and_metrics(tiny_model, tokenizer, tmp_path, attention):
    plain = plain_trl(tiny_model, tokenizer, tmp_path / "plain")
    plain_batch = plain.data_collator(plain.train_dataset.to_list())
    ways = [([name], None) for name in LOSSES] + [(["sigmoid", "sft"], None), (["sigmoid"], 0.5), (["ipo", "sft"], 0.25)]
    wanted = [(loss_and_gradients(plain, plain_batch, *way), last_metrics(plain)) for way in ways]
    shared = ours(tiny_model, tokenizer, tmp_path / "ours", attention)
    score_completion_only()
    batch = shared.data_collator(ROWS)
    # 24 prompt tokens with 4 + 4 + 2 new ones, 1 + 6 + 1 of the other question on the schema, 4 + 2 + 3 of the last.
    assert batch["pack"]["input_ids"].shape == (1, 34 + 8 + 9)
    assert torch.equal(batch["input_ids"], plain_batch["input_ids"])
    with packs_accepted(shared.model.get_base_model()) as taken:
        assert taken
        for way, ((loss, gradients), metrics) in zip(ways, wanted, strict=True):
            found, found_gradients = loss_and_gradients(shared, batch, *way)
            assert found == pytest.approx(loss, rel=1e-5), way
            assert found_gradients.keys() == gradients.keys() and len(gradients) == 28
            for name, gradient in gradients.items():
                assert gradient.norm() > 0, (way, name)
                assert (found_gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), (way, name)
            assert last_metrics(shared) == pytest.approx(metrics, rel=1e-4, abs=1e-5), way


def test_gradient_checkpointing_changes_nothing(tiny_model, tokenizer, tmp_path):
    shared = ours(tiny_model, tokenizer, tmp_path)
    score_completion_only()
    batch = shared.data_collator(ROWS)
    with packs_accepted(shared.model.get_base_model()):
        loss, gradients = loss_and_gradients(shared, batch, ["sigmoid"])
        shared.model.gradient_checkpointing_enable()
        shared.model.enable_input_require_grads()
        again, recomputed = loss_and_gradients(shared, batch, ["sigmoid"])
    assert again == pytest.approx(loss, rel=1e-6)
    assert all(torch.allclose(recomputed[name], gradients[name], atol=1e-6) for name in gradients)


# ------------------------------------------------------------------ reference


@pytest.fixture
def file(tmp_path):
    return tmp_path / "reference_logps.jsonl"


def test_a_kept_reference_gives_the_same_loss_and_is_computed_once(
    tiny_model, tokenizer, tmp_path, file, monkeypatch, capsys
):
    trainer = ours(tiny_model, tokenizer, tmp_path)
    score_completion_only()
    passes, compute = [], DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda self, *given: passes.append(1) or compute(self, *given))
    with packs_accepted(trainer.model.get_base_model()):
        batch = trainer.data_collator(ROWS)
        wanted = trainer.compute_loss(trainer.model, dict(batch)).item()
        assert passes == []  # trl's own, inside the loss
        trainer.reference = ReferenceLogps(file, ["checkpoint"])
        capsys.readouterr()
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(wanted, abs=1e-5)
        assert len(passes) == 1 and "4 pairs computed, 4 known" in capsys.readouterr().out
        trainer.compute_loss(trainer.model, dict(batch))
        trainer.reference = ReferenceLogps(file, ["checkpoint"])  # a new start of the same run
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(wanted, abs=1e-5)
        assert len(passes) == 1
        trainer.reference = ReferenceLogps(file, ["another checkpoint"])
        trainer.compute_loss(trainer.model, dict(batch))
        assert len(passes) == 2 and len(file.read_text().splitlines()) == 8


def test_a_kept_reference_that_is_not_the_references_is_refused(tiny_model, tokenizer, tmp_path, file):
    trainer = ours(tiny_model, tokenizer, tmp_path)
    randomise(trainer.model, 2)
    with torch.no_grad():  # the policy is the reference, as at every start
        held = dict(trainer.model.named_parameters())
        for name, parameter in held.items():
            if ".default." in name:
                parameter.copy_(held[name.replace(".default.", ".ref.")])
    trainer.start, trainer.reference = None, ReferenceLogps(file, ["checkpoint"])
    trainer.reference.found = {trainer.reference.key(row): (-3.0, -4.0) for row in ROWS}
    with packs_accepted(trainer.model.get_base_model()), pytest.raises(ValueError, match=r"reference_logps.jsonl holds a"):
        trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))


def test_an_interrupted_reference_goes_on_where_it_stopped(file):
    def compute(rows):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [(-float(row["chosen_ids"][0]), -1.0) for row in rows]

    asked = []
    with pytest.raises(KeyboardInterrupt):
        ReferenceLogps(file, [1]).complete(ROWS, 2, compute)
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('["cut sho')
    again = ReferenceLogps(file, [1])
    assert len(again.missing(ROWS)) == 2
    assert again.complete(ROWS + ROWS, 2, compute) == 2 and asked == [2, 2, 2]
    assert {key: again.found[key] for key in map(again.key, ROWS)} == {
        again.key(row): (-float(row["chosen_ids"][0]), -1.0) for row in ROWS}


def test_a_rank_whose_own_pairs_are_known_computes_the_others_too(tiny_model, tokenizer, tmp_path, file, monkeypatch):
    """A file that was cut short holds the two pairs of this micro-batch: other ranks wait for this one to compute the rest."""
    trainer = ours(tiny_model, tokenizer, tmp_path)
    trainer.reference = ReferenceLogps(file, [])
    trainer.reference.found = {trainer.reference.key(row): (-1.0, -2.0) for row in ROWS[:2]}
    asked = []
    monkeypatch.setattr(trainer, "_reference_of", lambda rows: asked.append(rows) or [(-1.0, -2.0)] * len(rows))
    kept = trainer._kept_reference(trainer.data_collator(ROWS[:2]))
    assert [side.tolist() for side in kept] == [[-1.0, -1.0], [-2.0, -2.0]]
    assert [[row["chosen_ids"] for row in rows] for rows in asked] == [[ROWS[2]["chosen_ids"], ROWS[3]["chosen_ids"]]]
    trainer._kept_reference(trainer.data_collator(ROWS[2:]))
    assert len(asked) == 1


def test_what_is_known_is_what_the_first_ranks_file_holds(file, monkeypatch):
    first = ReferenceLogps(file, [])
    first.found = {first.key(row): (-1.0, -2.0) for row in ROWS}
    monkeypatch.setattr("sft.ranks.gather", lambda value: [first.found, value])
    second = ReferenceLogps(file, [])  # on a machine that has no such file
    assert second.complete(ROWS, 2, pytest.fail) == 0 and second.found == first.found


def test_every_rank_computes_its_share_and_as_often(file, monkeypatch):
    """Five pairs, two ranks, two at a time: the second rank repeats the last pair rather than stay away."""
    rows = [{"prompt_ids": [1], "chosen_ids": [number], "rejected_ids": [2]} for number in range(5)]
    asked = {0: [], 1: []}

    def compute(rank, rows):
        asked[rank].append([row["chosen_ids"][0] for row in rows])
        return [(0.0, 0.0)] * len(rows)

    for rank in (0, 1):
        monkeypatch.setattr("sft.ranks.rank", lambda rank=rank: rank)
        monkeypatch.setattr("sft.ranks.world_size", lambda: 2)
        monkeypatch.setattr("sft.ranks.is_main", lambda: False)
        ReferenceLogps(file, []).complete(rows, 2, partial(compute, rank))
    assert asked == {0: [[0, 1], [4]], 1: [[2, 3], [4]]}


def test_the_key_is_of_the_content(file):
    kept = ReferenceLogps(file, ["a"])
    keys = {kept.key(row) for row in ROWS} | {ReferenceLogps(file, ["b"]).key(row) for row in ROWS}
    assert len(keys) == 8 and kept.key(dict(ROWS[0])) == kept.key(ROWS[0])
    file.write_text(json.dumps([kept.key(ROWS[0]), -1.0, -2.0]) + "\n")
    assert ReferenceLogps(file, ["a"]).missing(ROWS) == ROWS[1:]

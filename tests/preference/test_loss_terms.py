"""Margins, weights of pairs and of tokens: losses and gradients by hand, whatever the loss, prompts shared or not."""

import math

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig
from trl.trainer.utils import FusedCausalLMOutput

from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
from preference.dpo_training import tokenized_pairs
from preference.loss_terms import check_terms, shared_tokens
from preference.reference import ReferenceLogps
from sft.checkpoint import load_base, load_tokenizer
from sft.configuration import DpoTrain
from sft.fused_lora import fuse_lora
from sft.packed_attention import packs_accepted
from sft.scoring import score_completion_only
from sft.training import lora_model

BETA = 0.3
LOSSES = DpoTrain.model_fields["loss_type"].annotation.__args__[0].__args__
# In common: 70 71 and the EOS; the EOS; 77 79 and the EOS.
ROWS = [
    {"prompt_ids": [1, 40, 41, 61], "chosen_ids": [70, 71, 72, 2], "rejected_ids": [70, 71, 73, 74, 2]},
    {"prompt_ids": [1, 40, 41, 61], "chosen_ids": [70, 71, 72, 2], "rejected_ids": [76, 2]},
    {"prompt_ids": [1, 90, 91], "chosen_ids": [77, 78, 79, 2], "rejected_ids": [77, 79, 2]},
]
MARGINS, WEIGHTS = (1.0, 0.25, 0.0), (0.5, 2.0, 1.0)
SHARED = [([1, 1, 0, 1], [1, 1, 0, 0, 1]), ([0, 0, 0, 1], [0, 1]), ([1, 0, 1, 1], [1, 1, 1])]
for _row, _margin, _weight in zip(ROWS, MARGINS, WEIGHTS, strict=True):
    _row |= {"sft_chosen_logps": None, "sft_rejected_logps": None, "margin": _margin, "weight": _weight}


# --------------------------------------------------------------- tokens and pairs


def test_tokens_that_both_sides_have_by_hand():
    assert shared_tokens([5, 6, 7, 2], [5, 8, 7, 7, 2]) == ([1, 0, 1, 1], [1, 0, 0, 1, 1])
    for row, wanted in zip(ROWS, SHARED, strict=True):
        assert shared_tokens(row["chosen_ids"], row["rejected_ids"]) == wanted
    assert shared_tokens([5, 6], [7]) == ([0, 0], [0]) and shared_tokens([], [7]) == ([], [0])
    long = [4] * 300  # difflib's own guess would take a token that comes so often for junk
    assert shared_tokens(long, [*long, 9]) == ([1] * 300, [1] * 300 + [0])


def check(pairs, loss_type=("sigmoid",), margin_scale=0.0):
    check_terms(pairs, loss_type=list(loss_type), margin_scale=margin_scale)


def test_columns_that_cannot_be_used_are_refused():
    check([{}, {"margin": None, "weight": None}, {"margin": 1.0, "weight": 0.0}], margin_scale=2.0)
    check([{"weight": 1.0}], ["hinge"])
    with pytest.raises(ValueError, match=r"1 of 2 pairs have a margin that is out of range, for instance 1.5. Allowed are"):
        check([{"margin": 1.5}, {"margin": 0.5}])
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"a weight that is out of range.*Allowed are numbers of 0 or more.*Delete the round's pairs\.parquet"):
            check([{"weight": value}])
    with pytest.raises(ValueError, match=r"margin_scale is 1.0, but the margin of every pair is 0.*set train.margin_scale=0"):
        check([{"margin": 0.0}, {}], margin_scale=1.0)
    with pytest.raises(ValueError, match="all 2 pairs have weight 0, so nothing would be trained"):
        check([{"weight": 0.0}] * 2)
    with pytest.raises(ValueError, match="the loss hinge takes none.*choose another train.loss_type"):
        check([{"weight": 0.5}], ["sigmoid", "hinge"])


# --------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture
def trainer(tiny_model, tokenizer, tmp_path):
    """A trainer whose policy has moved away from its reference, and that is past its first step."""
    score_completion_only()
    model = lora_model(load_base(tiny_model, precision="fp32"), rank=4, alpha=12, dropout=0.0, gradient_checkpointing=False,
                       seed=0)
    moved(model, 1)
    arguments = DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=len(ROWS), beta=BETA, bf16=False, use_cpu=True,
                          max_length=None, gradient_checkpointing=False, report_to="none", label_smoothing=0.1)
    trainer = ExecutionDPOTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(ROWS),
                                  data_collator=preference_collator(tokenizer))
    moved(model, 2)
    fuse_lora(model)
    trainer.start = {}
    return trainer


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and ".default." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def policy_of(logps):
    """A model that gives these log-probabilities [2 x batch, tokens - 1]."""
    return lambda **_: FusedCausalLMOutput(log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps),
                                           is_top1=torch.zeros_like(logps, dtype=torch.bool))


def losses_are(trainer, names, weights=(1.0, 0.5)):
    trainer.loss_types, trainer.loss_weights = list(names), list(weights[: len(names)])


def given_reference(trainer, file, values):
    trainer.reference = ReferenceLogps(file, [])
    trainer.reference.found = {trainer.reference.key(row): value for row, value in zip(ROWS, values, strict=True)}


def test_loss_and_gradients_by_hand(trainer, tokenizer, tmp_path):
    """Two pairs, every log-probability a round number. With the tokens in common weighing 0.5, beta 0.3, margin_scale 2:

    chosen 1: 70 -1, 71 -2, 72 -3, EOS -4 -> 0.5 (-1 - 2 - 4) - 3 = -6.5;  rejected 1: 70 -1, 71 -1, 73 -2, 74 -2, EOS -2 ->
    0.5 (-1 - 1 - 2) - 4 = -6. Reference -7 and -5: delta 0.5 + 1 = 1.5, z = 0.45 - 2 x 1 = -1.55.
    chosen 2: -1 -1 -1 and 0.5 (-1) = -3.5;  rejected 2: -2 and 0.5 (-4) = -4. Reference -4 and -4: delta 0.5, z = 0.15 - 0.5.
    """
    logps = torch.zeros(4, 8)
    logps[0, 3:7] = torch.tensor([-1.0, -2, -3, -4])
    logps[1, 3:7] = -1.0
    logps[2, 3:8] = torch.tensor([-1.0, -1, -2, -2, -2])
    logps[3, 3:5] = torch.tensor([-2.0, -4])
    logps.requires_grad_()
    given_reference(trainer, tmp_path / "kept", [(-7.0, -5.0), (-4.0, -4.0), (0.0, 0.0)])
    trainer.shared_token_weight = 0.5
    losses_are(trainer, ["sigmoid", "sft"])
    batch = preference_collator(tokenizer, margin_scale=2.0, mark_shared_tokens=True)(ROWS[:2])
    assert batch["offsets"] == [2.0, 0.5] and batch["weights"] == [0.5, 2.0]
    loss = trainer.compute_loss(policy_of(logps * (logps != 0)), batch)  # outside the completions: 0, whatever the weights
    loss.backward()
    z = (-1.55, -0.35)
    sigmoid = [math.log1p(math.exp(-value)) for value in z]
    # The sft term: plain log-probabilities, a pair's tokens times its weight, over the 8 chosen tokens.
    sft = (0.5 * 10 + 2.0 * 4) / 8
    assert loss.item() == pytest.approx((0.5 * sigmoid[0] + 2.0 * sigmoid[1]) / 2 + 0.5 * sft, abs=1e-5)
    # d -log sigmoid(z) / d log p_t = -(1 - sigmoid(z)) beta a_t for chosen, the opposite for rejected.
    slope = [weight * BETA / 2 / (1 + math.exp(value)) for weight, value in zip((0.5, 2.0), z, strict=True)]
    wanted = torch.zeros(4, 8)
    wanted[0, 3:7] = -slope[0] * torch.tensor([0.5, 0.5, 1, 0.5]) - 0.5 * 0.5 / 8
    wanted[1, 3:7] = -slope[1] * torch.tensor([1, 1, 1, 0.5]) - 0.5 * 2.0 / 8
    wanted[2, 3:8] = slope[0] * torch.tensor([0.5, 0.5, 1, 1, 0.5])
    wanted[3, 3:5] = slope[1] * torch.tensor([1, 0.5])
    assert torch.allclose(logps.grad, wanted, atol=1e-6)
    # Rewards are those of the policy: the margin of the loss is not in them, nor the weight.
    found = {name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith("rewards/")}
    assert found == pytest.approx({"rewards/chosen": 0.3 * (0.5 + 0.5) / 2, "rewards/rejected": 0.3 * (-1.0 + 0.0) / 2,
                                   "rewards/margins": 0.3 * (1.5 + 0.5) / 2, "rewards/accuracies": 1.0}, abs=1e-6)


def test_the_sft_term_leaves_out_pairs_whose_chosen_query_is_wrong_too(trainer, tokenizer, tmp_path):
    """Chosen 1: four tokens of -2; chosen 2, graded: four of -3. The sft term is 8 over the 8 chosen tokens, not 20."""
    pair = {"prompt": [{"role": "user", "content": "Name"}], "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}]}
    strategies = ("nearest", "nearest-graded", "nearest-graded-flipped", None)
    rows = tokenized_pairs(tokenizer, [pair | {"strategy": name} for name in strategies], max_length=99, epochs=1,
                           global_batch_size=4, seed=0)
    assert sorted(rows["answer"]) == [False, False, True, True]

    def loss_and_slopes(names, graded):
        logps = torch.zeros(4, 8)
        logps[0, 3:7], logps[1, 3:7], logps[2, 3:8], logps[3, 3:5] = -2.0, -3.0, -2.0, -3.0
        logps.requires_grad_()
        losses_are(trainer, names)
        batch = preference_collator(tokenizer)([row | {"weight": 1.0, "answer": not (graded and place)}
                                                for place, row in enumerate(ROWS[:2])])
        loss = trainer.compute_loss(policy_of(logps), batch)
        loss.backward()
        return loss.item(), logps.grad

    given_reference(trainer, tmp_path / "kept", [(0.0, 0.0)] * 3)
    plain, plain_slopes = loss_and_slopes(["sigmoid"], True)
    for graded, sft, slope in ((False, 20 / 8, -0.5 / 8), (True, 8 / 8, 0.0)):
        loss, slopes = loss_and_slopes(["sigmoid", "sft"], graded)
        assert loss == pytest.approx(plain + 0.5 * sft, abs=1e-5)
        added = slopes - plain_slopes
        assert torch.allclose(added[0, 3:7], torch.tensor(-0.5 / 8)) and torch.allclose(added[1, 3:7], torch.tensor(slope))
        assert not added[2:].any()


def test_the_offset_of_hinge_by_hand(trainer, tokenizer, tmp_path):
    """relu(1 - (beta delta - margin_scale margin)): delta 1.5, margin 1 x 2: 1 - 0.45 + 2 = 2.55, slope -beta."""
    logps = torch.zeros(2, 8)
    logps[0, 3], logps[1, 3] = -2.0, -3.5
    logps.requires_grad_()
    given_reference(trainer, tmp_path / "kept", [(-1.0, -1.0), (0.0, 0.0), (0.0, 0.0)])
    losses_are(trainer, ["hinge"])
    loss = trainer.compute_loss(policy_of(logps), preference_collator(tokenizer, margin_scale=2.0)([ROWS[0] | {"weight": 1.0}]))
    loss.backward()
    assert loss.item() == pytest.approx(2.55, abs=1e-6) and logps.grad[:, 3].tolist() == pytest.approx([-BETA, BETA])


@pytest.mark.parametrize(("reference_weight", "lead"), [(1.0, -1.0), (0.5, 0.25), (0.0, 1.5)])
def test_the_weight_of_the_reference_by_hand(trainer, tokenizer, tmp_path, reference_weight, lead):
    """Policy -2 and -3.5, reference -1 and -3.5: delta = 1.5 - 2.5 r. The reward of a side stays beta (policy - reference)."""
    logps = torch.zeros(2, 8)
    logps[0, 3], logps[1, 3] = -2.0, -3.5
    logps.requires_grad_()
    given_reference(trainer, tmp_path / "kept", [(-1.0, -3.5), (0.0, 0.0), (0.0, 0.0)])
    losses_are(trainer, ["sigmoid"])
    trainer.reference_weight = reference_weight
    loss = trainer.compute_loss(policy_of(logps), preference_collator(tokenizer)([ROWS[0] | {"weight": 1.0}]))
    loss.backward()
    slope = BETA / (1 + math.exp(BETA * lead))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-BETA * lead)), abs=1e-6)
    assert logps.grad[:, 3].tolist() == pytest.approx([-slope, slope], abs=1e-6)
    assert trainer._metrics["train"]["rewards/margins"][-1] == pytest.approx(BETA * -1.0, abs=1e-6)
    assert trainer._metrics["train"]["rewards/chosen"][-1] == pytest.approx(BETA * -1.0, abs=1e-6)
    assert trainer._metrics["train"]["rewards/accuracies"][-1] == 0.0


# ----------------------------------------------------------- on a model, any loss


def gradients(trainer):
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    trainer.model.zero_grad()
    assert len(found) == 28
    return found


def by_definition(trainer, margin_scale, token_weight, reference_weight):
    """The loss by plain logits and the formula of `preference.loss_terms`, token by token."""
    def logps(row, side, adapter):
        trainer.model.set_adapter(adapter)
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        found = trainer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(row["prompt_ids"])
        return torch.stack([found[place - 1, ids[place]] for place in range(start, len(ids))])

    total, plain, tokens = 0.0, 0.0, 0
    for row, marks in zip(ROWS, SHARED, strict=True):
        delta = 0.0
        for side, sign, shared in zip(("chosen", "rejected"), (1, -1), marks, strict=True):
            weights = 1 - (1 - token_weight) * torch.tensor(shared)
            with torch.no_grad():
                reference = logps(row, side, "ref")
            policy = logps(row, side, "default")
            delta = delta + sign * (weights * (policy - reference_weight * reference)).sum()
            if side == "chosen":
                plain, tokens = plain + row["weight"] * policy.sum(), tokens + len(policy)
        total = total - row["weight"] * torch.nn.functional.logsigmoid(BETA * delta - margin_scale * row["margin"])
    return total / len(ROWS) - 0.5 * plain / tokens


@pytest.mark.parametrize(("share_prompts", "reference_weight"), [(False, 1.0), (True, 1.0), (True, 0.25)])
def test_loss_and_gradients_are_those_of_the_formula(trainer, tokenizer, tmp_path, share_prompts, reference_weight):
    trainer.model.eval()
    loss = by_definition(trainer, 2.0, 0.1, reference_weight)
    loss.backward()
    wanted = gradients(trainer)
    trainer.model.set_adapter("default")
    trainer.shared_token_weight, trainer.reference_weight = 0.1, reference_weight
    losses_are(trainer, ["sigmoid", "sft"])
    trainer.data_collator = preference_collator(tokenizer, share_prompts, margin_scale=2.0, mark_shared_tokens=True)
    trainer.reference = None
    with packs_accepted(trainer.model.get_base_model(), wanted=share_prompts):
        for kept in (False, True):  # the reference computed in the step, and kept
            if kept:
                trainer.reference = ReferenceLogps(tmp_path / "kept", [])
            found = trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))
            found.backward()
            assert found.item() == pytest.approx(loss.item(), rel=1e-5)
            for name, gradient in gradients(trainer).items():
                assert (gradient - wanted[name]).norm() < 1e-4 * wanted[name].norm(), (kept, name)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("sft", "hinge")])
def test_weights_of_pairs_scale_each_pairs_own_loss_and_gradient(trainer, tokenizer, name):
    losses_are(trainer, [name])
    collate, total, wanted = preference_collator(tokenizer), 0.0, {}
    for row in ROWS:
        loss = trainer.compute_loss(trainer.model, collate([row | {"weight": 1.0}]))
        loss.backward()
        total += row["weight"] * loss.item() / len(ROWS)
        for key, gradient in gradients(trainer).items():
            wanted[key] = wanted.get(key, 0) + row["weight"] * gradient / len(ROWS)
    found = trainer.compute_loss(trainer.model, collate(ROWS))
    found.backward()
    assert found.item() == pytest.approx(total, rel=1e-5)
    for key, gradient in gradients(trainer).items():
        assert (gradient - wanted[key]).norm() < 1e-4 * wanted[key].norm(), key


def test_trls_own_weights_go_with_those_of_pairs_and_with_the_sft_term(trainer, tokenizer):
    """WPO multiplies a pair's loss by the mean likelihood of its sides: with a weight, the weight times that."""
    trainer.args.use_weighting = trainer.use_weighting = True
    collate, logps = preference_collator(tokenizer), torch.full((2, 8), -1.5)
    trainer.reference = None

    def policy(**given):
        outputs = policy_of(logps * (given["labels"][:, 1:] != -100))()
        outputs.log_sum_sq_probs = torch.full((2, 8), -1.0)
        return outputs

    found = {}
    for names in (["sigmoid"], ["sigmoid", "sft"]):
        losses_are(trainer, names)
        for weight in (1.0, 0.5):
            found[len(names), weight] = trainer.compute_loss(policy, collate([ROWS[0] | {"weight": weight}])).item()
    # The sft term is 1.5 nats a token, times its share 0.5 and the weight.
    assert found[1, 0.5] == pytest.approx(found[1, 1.0] / 2, rel=1e-5)
    assert found[2, 1.0] == pytest.approx(found[1, 1.0] + 0.5 * 1.5, rel=1e-5)
    assert found[2, 0.5] == pytest.approx(found[2, 1.0] / 2, rel=1e-5)
    trainer.args.use_weighting = trainer.use_weighting = False
    losses_are(trainer, ["sigmoid"])
    plain = trainer.compute_loss(policy, collate([ROWS[0] | {"weight": 1.0}])).item()
    assert found[1, 1.0] == pytest.approx(plain * math.exp(-0.5) ** 2, rel=1e-5)


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_terms_without_effect_give_the_plain_loss(trainer, tokenizer, ld_alpha):
    """Nothing of them in the batch; and where they stand there with no effect, the same loss and rewards."""
    trainer.ld_alpha = ld_alpha
    losses_are(trainer, ["sigmoid", "sft"])
    rows = [row | {"weight": 1.0} for row in ROWS]
    batch = preference_collator(tokenizer)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "sft_logps"}
    plain = trainer.compute_loss(trainer.model, dict(batch)).item()
    rewards = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}  # counts on
    batch |= {"offsets": [0.0] * 3, "weights": [1.0] * 3, "shared_tokens": torch.ones_like(batch["input_ids"]) == 1}
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(plain, abs=1e-6)
    assert {name: trainer._metrics["train"][name][-1] for name in rewards} == pytest.approx(rewards, abs=1e-5)
    assert "rewards/margins" in rewards and "logps/rejected" in rewards
    assert (trainer.loss_types, trainer.loss_weights, trainer.use_weighting) == (["sigmoid", "sft"], [1.0, 0.5], False)


def test_the_start_is_proved_with_every_term_on(trainer, tokenizer, tmp_path):
    """Policy and reference are the same: margin 0, loss ln 2 as told, and a kept reference is compared as it weighs."""
    held = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in held.items():
            if ".default." in name:
                parameter.copy_(held[name.replace(".default.", ".ref.")])
    trainer.start, trainer.shared_token_weight, trainer.reference_weight = None, 0.1, 0.5
    trainer.data_collator = preference_collator(tokenizer, margin_scale=2.0, mark_shared_tokens=True)
    trainer.reference = ReferenceLogps(tmp_path / "kept", [0.1])
    trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))
    assert trainer.start["sigmoid_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.start, trainer.shared_token_weight = None, 1.0
    with pytest.raises(ValueError, match="kept holds a log-probability that is"):
        trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))

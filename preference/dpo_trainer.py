"""trl's DPOTrainer on our token ids: prompts computed once, reference kept, and proof that it starts where SFT ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preference.loss_terms import shared_tokens
from preference.reference import ReferenceLogps
from sft import ranks
from sft.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "rejected")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
# What a batch may hold beside trl's own (see `preference.loss_terms`); what has no effect is not in it.
TERMS = ("offsets", "weights", "answers", "shared_tokens")


class ExecutionDPOTrainer(DPOTrainer):
    """trl's DPOTrainer on pairs that are already token ids, which proves at its first step where it starts.

    At step 0 the policy is the reference, so the sigmoid loss is ln 2; that holds for a wrong start too, so the policy's
    log-probabilities must also be those that the SFT model had when it sampled the pairs (within rounding).
    """

    start: dict | None = None
    # Where set, the reference's log-probabilities come from there instead of a forward pass in every step.
    reference: ReferenceLogps | None = None
    # Weight of the tokens that the batch marks as `shared_tokens`.
    shared_token_weight: float = 1.0
    # Share of the reference's log-probabilities that counts (see `preference.loss_terms`).
    reference_weight: float = 1.0

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "sft_chosen_logps", "sft_rejected_logps", "margin", "weight",
                                   "answer"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sampled = inputs.pop("sft_logps")
        offsets, weights, answers, token_weights = self._pop_terms(inputs)
        first = self.start is None and self.state.global_step == 0
        kept = self._kept_reference(inputs) if self.reference else None
        policy = self.policy_outputs(model, inputs) if first else None
        # The first step computes the reference itself in any case: that it is the policy is what there is to prove.
        reference = None if first else kept
        if reference is None and (offsets is not None or token_weights is not None or self.reference_weight != 1):
            reference = self.compute_ref_log_probs(_weighing(self.model, token_weights), inputs)
        self.precompute_ref_logps = reference is not None
        if reference is not None:
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference
        # trl's own weights (WPO) multiply the sft term's one value in place for all pairs, which torch refuses (trl 1.16).
        plain = not ((self.use_weighting or answers is not None) and "sft" in self.loss_types)
        if plain and self.reference_weight == 1 and all(term is None for term in (offsets, weights, token_weights)):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            loss = self._loss_with_terms(model, inputs, offsets, weights, answers, token_weights)
        if first:
            apart = 0.0
            if kept is not None:
                found = self.compute_ref_log_probs(_weighing(lambda **_: policy, token_weights), inputs)
                apart = self.accelerator.gather((torch.cat(kept) - torch.cat(found).float()).abs()).max().item()
            self.start = self._check_start(policy.log_probs.sum(dim=1), sampled, apart)
        return loss

    def _pop_terms(self, inputs) -> tuple:
        """(offsets, weights and answers [batch], token weights [2 x batch, tokens]), None for what the batch does not have."""
        *of_pairs, shared = (inputs.pop(name, None) for name in TERMS)
        of_pairs = (None if values is None else torch.tensor(values, device=self.accelerator.device) for values in of_pairs)
        return *of_pairs, None if shared is None else torch.where(shared, self.shared_token_weight, 1.0)

    def _loss_with_terms(self, model, inputs, offsets, weights, answers, token_weights):
        """trl's loss of a batch with what `preference.loss_terms` says: value, gradient and rewards are those of its formula.

        The sft term is -sum(weight log p) / count over the micro-batch's chosen tokens, where a token has its pair's weight, or 0
        in a graded pair: its chosen query is wrong, too. Tokens that both sides have in common count in full, since it is to hold
        all of the chosen query.
        trl's logps/chosen and logps/rejected are sums of weighted log-probabilities then.
        """
        seen, per_sequence = {}, weights is not None or self.use_weighting

        def scored(**given):
            outputs = model(**given)
            seen["plain"] = plain = outputs.log_probs
            if token_weights is not None:
                outputs.log_probs = plain * token_weights[:, 1:]
            if per_sequence:
                # trl multiplies a pair's loss by exp(mean over tokens of log_probs - log_sum_sq_probs) of either side (WPO).
                with torch.no_grad():
                    factor = plain - outputs.log_sum_sq_probs if self.args.use_weighting else torch.zeros_like(plain)
                    if weights is not None:
                        factor = factor + (weights.clamp_min(1e-30).log() / 2).repeat(2).unsqueeze(1)
                    outputs.log_sum_sq_probs = outputs.log_probs - factor
            seen["outputs"] = outputs
            return outputs

        own = self.loss_types, self.loss_weights, self.use_weighting
        losses = [(name, share) for name, share in zip(*own[:2], strict=True) if name != "sft"]
        reference = [inputs[f"ref_{side}_logps"] for side in SIDES] if self.precompute_ref_logps else None
        moved = offsets is not None or self.reference_weight != 1
        if moved:
            shift = 0.0 if offsets is None else offsets / self.beta
            inputs["ref_chosen_logps"] = self.reference_weight * reference[0]
            inputs["ref_rejected_logps"] = self.reference_weight * reference[1] - shift
        try:
            self.loss_types, self.loss_weights = [name for name, _ in losses], [share for _, share in losses]
            self.use_weighting = per_sequence
            loss = super().compute_loss(scored, inputs)
        finally:
            self.loss_types, self.loss_weights, self.use_weighting = own
        if moved:
            self._log_rewards(self.compute_ref_log_probs(lambda **_: seen["outputs"], inputs), reference)
        for name, share in zip(*own[:2], strict=True):
            if name == "sft":
                chosen, counted = (tensor.chunk(2)[0] for tensor in (seen["plain"], inputs["completion_mask"][:, 1:]))
                for of_pairs in (weights, answers):
                    chosen = chosen if of_pairs is None else chosen * of_pairs.unsqueeze(1)
                loss = loss - share * (chosen * counted).sum() / counted.sum()
        return loss

    def _log_rewards(self, policy, reference) -> None:
        """Put right the rewards that trl logged against a moved reference: those here are against the reference itself."""
        chosen, rejected = (self.accelerator.gather(self.beta * (of_policy - of_reference))
                            for of_policy, of_reference in zip(policy, reference, strict=True))
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["rewards/chosen"][-1], metrics["rewards/rejected"][-1] = chosen.mean().item(), rejected.mean().item()
        metrics["rewards/margins"][-1] = (chosen - rejected).mean().item()
        metrics["rewards/accuracies"][-1] = (chosen > rejected).float().mean().item()

    def _kept_reference(self, inputs):
        """The reference's (chosen, rejected) log-probabilities, [batch] each; the first call finds those of all pairs.

        All ranks enter it then, whatever they know of their own pairs: what is missing, they compute together.
        """
        rows = [dict(zip(IDS, ids, strict=True)) for ids in _token_ids(inputs)]
        if not self.reference.whole:
            count = self.reference.complete(self.train_dataset.to_list(), self.args.per_device_train_batch_size,
                                            self._reference_of)
            if count and ranks.is_main():
                print(f"reference log-probabilities: {count} pairs computed, {len(self.reference.found)} known")
        values = torch.tensor([self.reference.found[self.reference.key(row)] for row in rows])
        return values.to(self.accelerator.device).unbind(dim=1)

    def _reference_of(self, rows: list[dict]) -> list[tuple[float, float]]:
        """(chosen, rejected) of each row, by trl's own reference pass."""
        inputs = self._prepare_inputs(self.data_collator(rows))
        inputs.pop("sft_logps")
        *_, token_weights = self._pop_terms(inputs)
        sides = self.compute_ref_log_probs(_weighing(self.model, token_weights), inputs)
        return list(zip(*(side.tolist() for side in sides), strict=True))

    def policy_outputs(self, model, inputs):
        """What the policy's LM head finds; its log_probs [2 x batch, tokens - 1] in nats, 0 outside the completions."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        packed = {"pack": inputs["pack"]} if "pack" in inputs else {}
        with torch.no_grad():
            return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels,
                         use_cache=False, fused_lm_head=True, **packed)

    def _check_start(self, policy, sampled, apart: float) -> dict:
        """Compare the first micro-batch (all ranks) with ln 2 and with the sampler's log-probabilities (nan: unknown).

        `apart`: the largest difference, in nats, between a kept log-probability of the reference and the policy's.
        """
        metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
        loss = math.log1p(math.exp(-metrics["rewards/margins"]))
        if not abs(loss - math.log(2)) <= (1e-4 if self.args.bf16 is False else 2e-2):
            raise ValueError(f"the first DPO loss is {loss:.4f}, not ln 2 = 0.6931: policy and reference differ before "
                             "the first step. The reference must be a frozen copy of the SFT adapter.")
        policy, sft, allowed = self.check_sampled(policy, sampled)
        if apart > 2 * allowed:
            raise ValueError(f"{self.reference.file} holds a log-probability that is {apart:.2f} nats from the reference's "
                             f"(allowed {2 * allowed:.2f}). Delete that file; it is computed again.")
        if ranks.is_main():
            print(f"start proved: sigmoid loss {loss:.4f} (ln 2 = 0.6931), log-probabilities {policy:.3f} nats, "
                  + ("unknown when sampled" if sft is None else f"{sft:.3f} when sampled"))
        return {"sigmoid_loss": loss, "policy_logps": policy, "sft_logps": sft}

    def check_sampled(self, policy, sampled) -> tuple[float, float | None, float]:
        """(mean of the policy's log-probabilities, mean of the sampler's, allowed difference): nats, of all ranks' completions.

        `policy` and `sampled`: [2 x batch], sampled nan (and its mean None) where it is unknown. Raises ValueError where the
        two means are further apart than rounding brings them.
        """
        policy, sampled = self.accelerator.gather(policy.float()), self.accelerator.gather(sampled.float())
        known = bool((~sampled.isnan()).any())
        policy = (policy[~sampled.isnan()] if known else policy).mean().item()
        sft = sampled.nanmean().item() if known else None
        # bf16 rounds a completion's log-probability by some tenths of a nat, more for longer ones.
        allowed = 1e-2 if self.args.bf16 is False else max(1.0, 0.15 * abs(sft if known else policy))
        if known and not abs(policy - sft) <= allowed:
            raise ValueError(
                f"at its start the policy gives the pairs {policy:.2f} nats on average; the SFT model that sampled them "
                f"gave {sft:.2f} (allowed difference {allowed:.2f}). It does not start from that SFT adapter: the pairs "
                "come from another checkpoint, were sampled in another precision (train.precision: auto follows the machine), or the "
                "adapter was not loaded. Delete the round's candidates.parquet and run again with --overwrite: it is sampled anew, "
                "and what follows is made of it."
            )
        return policy, sft, allowed


def _token_ids(inputs) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) ids of each pair of a batch of trl's collator."""
    rows = []
    for ids, seen, completion in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(),
                                     inputs["completion_mask"].tolist(), strict=True):
        start, end = completion.index(1), sum(seen)
        rows.append((ids[:start], ids[start:end]))
    half = len(rows) // 2
    return [(prompt, chosen, rejected) for (prompt, chosen), (_, rejected) in zip(rows[:half], rows[half:], strict=True)]


def _weighing(model, token_weights):
    """The model as a function whose log-probabilities are multiplied by the weights of their tokens [2 x batch, tokens]."""
    if token_weights is None:
        return model

    def weighed(**given):
        outputs = model(**given)
        return type(outputs)(log_probs=outputs.log_probs * token_weights[:, 1:])

    return weighed


def preference_collator(tokenizer: PreTrainedTokenizerBase, share_prompts: bool = False, margin_scale: float = 0.0,
                        mark_shared_tokens: bool = False):
    """trl's collator, which also hands on the sampler's log-probabilities as `sft_logps` [2 x batch] (nan: unknown).

    `share_prompts`: and the same rows as `pack` (see `sft.packing`), for a model that accepts packs. `margin_scale`: and
    `offsets`, margin_scale x margin of each pair; `weights` of pairs that have others than 1; `answers`, 0 for a graded pair and
    1 for others, where there is one. These are lists: the trainer would round tensors to bf16 under DeepSpeed.
    `mark_shared_tokens`: and `shared_tokens`, bool [2 x batch, tokens].
    """
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)

    def collator(rows: list[dict]) -> dict:
        batch = collate([{name: row[name] for name in IDS} for row in rows])
        both = [(row, side) for side in SIDES for row in rows]
        sampled = [row[f"sft_{side}_logps"] for row, side in both]
        batch["sft_logps"] = torch.tensor([math.nan if value is None else value for value in sampled])
        if share_prompts:
            batch["pack"] = pack([row["prompt_ids"] + row[f"{side}_ids"] for row, side in both],
                                 [len(row["prompt_ids"]) for row, _ in both])
        if margin_scale:
            batch["offsets"] = [margin_scale * row["margin"] for row in rows]
        weights = [row.get("weight", 1.0) for row in rows]
        if any(weight != 1.0 for weight in weights):
            batch["weights"] = weights
        answers = [float(row.get("answer", True)) for row in rows]
        if not all(answers):
            batch["answers"] = answers
        if mark_shared_tokens:
            batch["shared_tokens"] = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            for number, row in enumerate(rows):
                marks = shared_tokens(row["chosen_ids"], row["rejected_ids"])
                for place, of_side in zip((number, len(rows) + number), marks, strict=True):
                    start = len(row["prompt_ids"])
                    batch["shared_tokens"][place, start : start + len(of_side)] = torch.tensor(of_side)
        return batch

    return collator

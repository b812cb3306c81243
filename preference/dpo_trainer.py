"""trl's DPOTrainer on our token ids: prompts computed once, reference kept, and proof that it starts where SFT ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preference.reference import ReferenceLogps
from sft import ranks
from sft.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "rejected")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


class ExecutionDPOTrainer(DPOTrainer):
    """trl's DPOTrainer on pairs that are already token ids, which proves at its first step where it starts.

    At step 0 the policy is the reference, so the sigmoid loss is ln 2; that holds for a wrong start too, so the policy's
    log-probabilities must also be those that the SFT model had when it sampled the pairs (within rounding).
    """

    start: dict | None = None
    # Where set, the reference's log-probabilities come from there instead of a forward pass in every step.
    reference: ReferenceLogps | None = None

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "sft_chosen_logps", "sft_rejected_logps"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sampled = inputs.pop("sft_logps")
        first = self.start is None and self.state.global_step == 0
        kept = self._kept_reference(inputs) if self.reference else None
        policy = self._policy_logps(model, inputs) if first else None
        # The first step computes the reference itself in any case: that it is the policy is what there is to prove.
        self.precompute_ref_logps = kept is not None and not first
        if self.precompute_ref_logps:
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = kept
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if first:
            self.start = self._check_start(policy, sampled, kept)
        return loss

    def _kept_reference(self, inputs):
        """The reference's (chosen, rejected) log-probabilities, [batch] each; the first call finds those of all pairs."""
        rows = [dict(zip(IDS, ids, strict=True)) for ids in _token_ids(inputs)]
        if any(self.reference.key(row) not in self.reference.found for row in rows):
            count = self.reference.complete(self.train_dataset.to_list(), self.args.per_device_train_batch_size,
                                            self._reference_of)
            if ranks.is_main():
                print(f"reference log-probabilities: {count} pairs computed, {len(self.reference.found)} known")
        values = torch.tensor([self.reference.found[self.reference.key(row)] for row in rows])
        return values.to(self.accelerator.device).unbind(dim=1)

    def _reference_of(self, rows: list[dict]) -> list[tuple[float, float]]:
        """(chosen, rejected) of each row, by trl's own reference pass."""
        inputs = self._prepare_inputs(self.data_collator(rows))
        inputs.pop("sft_logps")
        sides = self.compute_ref_log_probs(self.model, inputs)
        return list(zip(*(side.tolist() for side in sides), strict=True))

    def _policy_logps(self, model, inputs):
        """The policy's log-probability of each completion, [2 x batch] in nats; trl's metrics give means only."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        packed = {"pack": inputs["pack"]} if "pack" in inputs else {}
        with torch.no_grad():
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels,
                            use_cache=False, fused_lm_head=True, **packed)
        return outputs.log_probs.sum(dim=1)

    def _check_start(self, policy, sampled, kept) -> dict:
        """Compare the first micro-batch (all ranks) with ln 2 and with the sampler's log-probabilities (nan: unknown)."""
        metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
        loss = math.log1p(math.exp(-metrics["rewards/margins"]))
        apart = 0.0
        if kept is not None and self.ld_alpha is None:
            apart = self.accelerator.gather((torch.cat(kept) - policy.float()).abs()).max().item()
        policy, sampled = self.accelerator.gather(policy.float()), self.accelerator.gather(sampled.float())
        known = bool((~sampled.isnan()).any())
        policy = (policy[~sampled.isnan()] if known else policy).mean().item()
        sft = sampled.nanmean().item()
        found = {"sigmoid_loss": loss, "policy_logps": policy, "sft_logps": sft if known else None}
        exact = self.args.bf16 is False
        # bf16 rounds a completion's log-probability by some tenths of a nat, more for longer ones.
        allowed = 1e-2 if exact else max(1.0, 0.15 * abs(sft if known else policy))
        if abs(loss - math.log(2)) > (1e-4 if exact else 2e-2):
            raise ValueError(f"the first DPO loss is {loss:.4f}, not ln 2 = 0.6931: policy and reference differ before "
                             "the first step. The reference must be a frozen copy of the SFT adapter.")
        if known and abs(policy - sft) > allowed:
            raise ValueError(
                f"at its start the policy gives the pairs {policy:.2f} nats on average; the SFT model that sampled them "
                f"gave {sft:.2f} (allowed difference {allowed:.2f}). It does not start from that SFT adapter: the pairs "
                "come from another checkpoint, or the adapter was not loaded. Sample again with --only sample --overwrite."
            )
        if apart > 2 * allowed:
            raise ValueError(f"{self.reference.file} holds a log-probability that is {apart:.2f} nats from the reference's "
                             f"(allowed {2 * allowed:.2f}). Delete that file; it is computed again.")
        if ranks.is_main():
            print(f"start proved: sigmoid loss {loss:.4f} (ln 2 = 0.6931), log-probabilities {policy:.3f} nats, "
                  + (f"{sft:.3f} when sampled" if known else "unknown when sampled"))
        return found


def _token_ids(inputs) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) ids of each pair of a batch of trl's collator."""
    rows = []
    for ids, seen, completion in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(),
                                     inputs["completion_mask"].tolist(), strict=True):
        start, end = completion.index(1), sum(seen)
        rows.append((ids[:start], ids[start:end]))
    half = len(rows) // 2
    return [(prompt, chosen, rejected) for (prompt, chosen), (_, rejected) in zip(rows[:half], rows[half:], strict=True)]


def preference_collator(tokenizer: PreTrainedTokenizerBase, share_prompts: bool = False):
    """trl's collator, which also hands on the sampler's log-probabilities as `sft_logps` [2 x batch] (nan: unknown).

    `share_prompts`: and the same rows as `pack` (see `sft.packing`), for a model that accepts packs.
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
        return batch

    return collator

"""Guards while DPO trains: what the model answers and how likely it finds the pairs, a stop rule, and the best adapter kept."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from sft import ranks
from sft.artefacts import atomic_path, content_hash, library_writes, write_json
from sft.packed_attention import attention
from sft.training import finite

# Share of a measure, its name in a sentence.
SHARES = {"execution_accuracy": "execution accuracy", "valid_sql": "the share of valid SQL", "ended_with_eos": "the EOS rate"}


def drawn(examples: list, count: int) -> list:
    """`count` of a split's examples (all where there are fewer) in its order, the same ones in every run. Sources often sort their
    rows by kind or difficulty, so the first ones would not speak for the others.
    """
    places = random.Random("guards").sample(range(len(examples)), min(count, len(examples)))
    return [examples[place] for place in sorted(places)]


def gathered_adapter(model) -> dict:
    """The `default` adapter's weights, whole, on the CPU: partitions are put together where ZeRO-3 made some."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if ".default." in name]
    if not any(hasattr(parameter, "ds_id") for _, parameter in named):
        return {name: parameter.detach().cpu().clone() for name, parameter in named}
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter for _, parameter in named]):
        return {name: parameter.detach().cpu().clone() for name, parameter in named}


def limit_passed(start: dict, row: dict, limits: dict[str, float], sft: dict | None = None) -> str | None:
    """The sentence that says which limit a row of measures passes, against the row of step 0; None where it passes none.

    `limits`: the largest fall of execution_accuracy, valid_sql, ended_with_eos (shares) and chosen_logp (nats a token).
    `sft`: the SFT adapter's row, for later rounds: a share that falls is compared with the higher of the two, so that small
    losses of several rounds do not add up unseen.
    """
    for name, limit in limits.items():
        # None is what a measure that is no number is kept as.
        before, now = (float("nan") if one[name] is None else one[name] for one in (start, row))
        of = ""
        if sft and name in SHARES and sft[name] is not None and now < before < sft[name]:
            before, of = sft[name], "SFT's "
        fall = before - now
        if not fall <= limit + 1e-9:  # nan is no number to go on with
            if name in SHARES:
                return (f"at step {row['step']} {SHARES[name]} had fallen from {of}{before:.1%} to {now:.1%}, by "
                        f"{100 * fall:.1f} points (allowed {100 * limit:.1f})")
            return (f"at step {row['step']} the log-probability of the chosen queries had fallen from {before:.3f} to "
                    f"{now:.3f} nats a token, by {fall:.3f} (allowed {limit:.3f})")
    return None


def best_step(rows: list[dict]) -> int:
    """The step with the highest execution accuracy among those within the limits (step 0, the start, always is).

    Ties go to the later step: at no measured cost it has learned more of what the pairs prefer. A run that only harms
    therefore gives back its start.
    """
    return max((row for row in rows if row["limit_passed"] is None),
               key=lambda row: (row["execution_accuracy"], row["step"]))["step"]


class Guards(TrainerCallback):
    """Measures at step 0, every `every_steps` optimiser steps and at the last one, the same on every rank.

    A row holds step, what `evaluate(model, step)` gives, chosen_logp and rejected_logp (nats a token), their sums a query
    (chosen_logp_sum, rejected_logp_sum), margin (the mean reward margin: beta times how much further apart the two sums are
    than at step 0) and limit_passed. The log-probabilities are plain ones, whatever the loss weighs, on `pairs` fixed pairs:
    the first by the hash of their tokens, graded pairs (whose chosen query is wrong too, and may become less likely) only
    where there are no others. Rows and the best adapter stand in the checkpoints' folder, so an interrupted run
    goes on; they go to every tracker as guards/NAME.
    """

    def __init__(self, trainer, folder: Path, *, evaluate: Callable[[object, int], dict], own_attention: str,
                 every_steps: int, pairs: int, stop: bool, keep: str, max_accuracy_drop: float, max_valid_drop: float,
                 max_eos_drop: float, max_logp_fall: float, questions: int | None = None, sft: dict | None = None):
        """`own_attention`: the model's, for generating (training may have another). `questions`: known to `evaluate`.
        `sft`: what the SFT adapter reached, in a later round (`limit_passed`); with another number of questions it does not count.
        """
        self.trainer, self.folder, self.evaluate, self.own_attention = trainer, folder, evaluate, own_attention
        self.every_steps, self.stop, self.keep, self.sft = every_steps, stop, keep, sft
        self.limits = {"execution_accuracy": max_accuracy_drop, "valid_sql": max_valid_drop, "ended_with_eos": max_eos_drop,
                       "chosen_logp": max_logp_fall}
        keys = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = trainer.train_dataset.to_list()
        right = [row for row in rows if row["answer"]]
        by_hash = {content_hash([row[key] for key in keys]): row for row in right or rows}
        self.pairs = [by_hash[key] for key in sorted(by_hash)[:pairs]]
        self.record = folder / "guards.json"
        found = json.loads(self.record.read_text(encoding="utf-8")) if ranks.is_main() and self.record.exists() else []
        self.rows: list[dict] = ranks.gather(found)[0]
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measure(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps
        if not last and state.global_step % self.every_steps:
            return
        passed = self.measure(state, control)["limit_passed"]
        if passed and self.stop and not last:
            self.stopped = f"training stopped: {passed}"
            control.should_training_stop = True
            # A checkpoint of this step would be gone on from.
            control.should_save = False
        if passed and ranks.is_main():
            kept = ""
            if self.keep == "best":
                kept = f"; the adapter of step {best_step(self.rows)} is kept"
            elif last or self.stopped:
                kept = "; it is kept all the same, since guards.keep is last"
            print(f"guards: {self.stopped or passed}{kept}")

    def measure(self, state, control) -> dict:
        """The row of this step, measured unless an interrupted run did so before."""
        known = [row for row in self.rows if row["step"] == state.global_step]
        row = known[0] if known else self._measured(state.global_step)
        if not known:
            self.rows.append(row)
            if self.keep == "best" and best_step(self.rows) == row["step"]:
                self._save(self._weights(row["step"]))
            if ranks.is_main():
                write_json(self.record, self.rows)
                for file in self.folder.glob("guard-step-*.safetensors"):
                    if file != self._weights(best_step(self.rows)):
                        file.unlink()
        # Not trl's `log`, which would put the losses since the last log into this row; and the next log is still due.
        due = control.should_log
        numbers = {name: value for name, value in row.items() if name not in ("step", "limit_passed")}
        Trainer.log(self.trainer, {f"guards/{name}": value for name, value in numbers.items()})
        control.should_log = due
        return row

    def _measured(self, step: int) -> dict:
        trainer = self.trainer
        training = trainer.model.training
        trainer.model.eval()
        row = {"step": step, **self._logps(first=step == 0)}
        with (attention(trainer.model.get_base_model(), self.own_attention),
              unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator,
                                          gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs) as model):
            row = {**row, **self.evaluate(model, step)}
        trainer.model.train(training)
        start = self.rows[0] if self.rows else row
        apart, at_start = (one["chosen_logp_sum"] - one["rejected_logp_sum"] for one in (row, start))
        row["margin"] = trainer.beta * (apart - at_start)
        sft = self.sft if self.rows and self.sft and self.sft["n"] == start["n"] else None
        row["limit_passed"] = limit_passed(start, row, self.limits, sft)
        return ranks.gather(finite([row])[0])[0]

    def _logps(self, first: bool) -> dict[str, float]:
        """Mean log-probabilities of the fixed pairs; every rank computes all of them, so ranks change no figure.

        `first`: raise ValueError where they are not those that the sampler found, before anything is generated.
        """
        trainer, size = self.trainer, self.trainer.args.per_device_train_batch_size
        sums, tokens, at_start = [0.0, 0.0], [0, 0], []
        for start in range(0, len(self.pairs), size):
            inputs = trainer._prepare_inputs(trainer.data_collator(self.pairs[start : start + size]))
            with trainer.accelerator.autocast():
                found = trainer.policy_outputs(trainer.model, inputs).log_probs
            at_start.append((found.sum(dim=1), inputs["sft_logps"]))
            for side, (logps, counted) in enumerate(zip(found.chunk(2), inputs["completion_mask"].chunk(2), strict=True)):
                sums[side] += logps.double().sum().item()
                tokens[side] += int(counted.sum())
        if first:
            if not all(map(math.isfinite, sums)):
                raise ValueError(f"at its start the policy gives the chosen queries {sums[0]} and the rejected ones {sums[1]} nats. "
                                 "Allowed are finite numbers. The adapter to start from is damaged, or its numbers overflow: "
                                 "make stage one anew, or set train.precision=fp32.")
            trainer.check_sampled(*map(torch.cat, zip(*at_start, strict=True)))
        named = zip(("chosen", "rejected"), sums, tokens, strict=True)
        return {name: value for side, total, count in named
                for name, value in ((f"{side}_logp", total / count), (f"{side}_logp_sum", total / len(self.pairs)))}

    def _save(self, file: Path) -> None:
        from safetensors.torch import save_file

        state = gathered_adapter(self.trainer.model)
        if ranks.is_main():
            with library_writes(self.folder), atomic_path(file) as temporary:
                save_file(state, temporary)

    def _weights(self, step: int) -> Path:
        return self.folder / f"guard-step-{step}.safetensors"

    def kept_weights(self, last: dict) -> dict:
        """The whole weights of the adapter to keep: the best step's, or `last`, those at the end, where keep is `last`."""
        if self.keep == "last":
            return last
        from safetensors.torch import load_file

        ranks.barrier()
        return load_file(self._weights(best_step(self.rows)))

    def facts(self) -> dict:
        """What training.json says of the guards: guards (rows), stopped (a sentence or None), kept_step."""
        steps = self.trainer.state.global_step
        return {"guards": self.rows, "stopped": self.stopped,
                "kept_step": steps if self.keep == "last" else best_step(self.rows)}

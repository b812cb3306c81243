"""Harmful DPO under guards that really generate: python guarded_dpo.py FOLDER ZERO_STAGE.

FOLDER holds model/, adapter/, pairs.json, and questions.json: prompts with the answers of the start, computed without DeepSpeed.
Accuracy is the share of those answers that the model still gives. What comes out goes to FOLDER/guarded-ZERO_STAGE.pt.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> None:
    from sft import ranks

    ranks.prepare_environment(distributed=True)
    ranks.start(zero=True)
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    from preference.dpo_training import train_dpo
    from preference.guards import gathered_adapter
    from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer
    from sft.evaluation import answer

    folder, stage = Path(sys.argv[1]), int(sys.argv[2])
    tokenizer = load_tokenizer(folder / "model")
    pairs, questions = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("pairs", "questions"))

    def load_policy():
        base = load_base(folder / "model", precision="fp32", place=None if is_deepspeed_zero3_enabled() else "cpu")
        return load_adapter(base, folder / "adapter", base_fingerprint=fingerprint(folder / "model"), trainable=True)

    def evaluate(model, step):
        found = answer(model, tokenizer, questions, schema_style="compact", max_new_tokens=12, batch_size=4)
        same = sum(one["completion"] == question["answer"] for one, question in zip(found, questions, strict=True))
        return {"execution_accuracy": same / len(questions), "valid_sql": 1.0, "ended_with_eos": 1.0}

    model, state, facts = train_dpo(
        load_policy, tokenizer, pairs, folder / f"guarded-{stage}", epochs=4, learning_rate=0.1, warmup_share=0.0, beta=0.3,
        loss_type=["sigmoid"], loss_weights=[1.0], label_smoothing=0.0, global_batch_size=4, micro_batch_size=2,
        share_prompts=True, gradient_checkpointing=False, max_length=256, save_steps=100, zero_stage=stage, offload="none",
        bf16=False, seed=0, checkpoint="sft", trl={"report_to": "none"}, evaluate=evaluate, margin_scale=1.0,
        shared_token_weight=0.5,
        guards={"every_steps": 2, "questions": 4, "pairs": 4, "stop": True, "keep": "best", "max_accuracy_drop": 0.2,
                "max_valid_drop": 0.0, "max_eos_drop": 0.0, "max_logp_fall": 1.0})
    assert facts["zero_stage"] == stage
    last = gathered_adapter(model)  # as stage two keeps it beside the best one
    rows = ranks.gather(facts["guards"])
    assert all(other == rows[0] for other in rows), "ranks decide alike"
    if ranks.is_main():
        torch.save({"state": state, "last": last, "guards": rows[0], "stopped": facts["stopped"], "kept_step": facts["kept_step"],
                    "losses": [entry["loss"] for entry in facts["log"] if "loss" in entry]}, folder / f"guarded-{stage}.pt")
    ranks.barrier()
    ranks.finish()


if __name__ == "__main__":
    main()

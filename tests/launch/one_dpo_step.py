"""One step of plain gradient descent by stage two's trainer, prompts shared: python one_dpo_step.py FOLDER ZERO_STAGE.

FOLDER holds model/, adapter/ and pairs.json; the adapter after the step goes to FOLDER/stepped-ZERO_STAGE.pt.
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
    from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer

    folder, stage = Path(sys.argv[1]), int(sys.argv[2])

    def load_policy():
        base = load_base(folder / "model", precision="fp32", place=None if is_deepspeed_zero3_enabled() else "cpu")
        return load_adapter(base, folder / "adapter", base_fingerprint=fingerprint(folder / "model"), trainable=True)

    _, state, facts = train_dpo(
        load_policy, load_tokenizer(folder / "model"), json.loads((folder / "pairs.json").read_text(encoding="utf-8")),
        folder / f"zero-{stage}", epochs=1, learning_rate=0.1, warmup_share=0.0, beta=0.3, loss_type=["sigmoid"],
        loss_weights=[1.0], label_smoothing=0.0, global_batch_size=8, micro_batch_size=2, share_prompts=True,
        gradient_checkpointing=False, max_length=256, save_steps=100, zero_stage=stage, offload="none", bf16=False, seed=0,
        checkpoint="sft", trl={"optim": "sgd", "max_grad_norm": 1e9, "lr_scheduler_type": "constant"})
    assert facts["zero_stage"] == stage and facts["steps"] == 1
    if ranks.is_main():
        torch.save(state, folder / f"stepped-{stage}.pt")
    ranks.barrier()
    ranks.finish()


if __name__ == "__main__":
    main()

"""From labels to a trained model: what people flipped is what DPO learns, with their noise as the robust loss's share."""

import io
import shutil

import pytest
from rich.console import Console

from preference.inspection.apply import apply_labels
from preference.inspection.contents import hash_of
from preference.inspection.store import open_store
from preference.inspection.training import label_smoothing
from sft.artefacts import read_parquet


@pytest.fixture
def policy(pet_models):
    """(function that loads a tiny SFT model to train, its tokenizer)."""
    from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer

    def load():
        base = load_base(pet_models["base"], precision="fp32")
        return load_adapter(base, pet_models["sft"], base_fingerprint=fingerprint(pet_models["base"]), trainable=True)

    return load, load_tokenizer(pet_models["sft"])


def logps(model, tokenizer, pair):
    """Log-probability of each side under the model, chosen and rejected, in nats."""
    import torch

    from sft.prompt import completion_ids, prompt_ids

    prompt = prompt_ids(tokenizer, pair["prompt"])
    found = []
    for side in ("chosen", "rejected"):
        completion = completion_ids(tokenizer, pair[side][-1]["content"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        found.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum").item())
    return found


def test_dpo_learns_the_sides_that_people_prefer(clinic_run, policy, tmp_path):
    from preference.dpo_training import train_dpo

    run = shutil.copytree(clinic_run, tmp_path / "run")
    path = run / "round-1" / "pairs.parquet"
    before = read_parquet(path)
    store = open_store(run)
    for number, pair in enumerate(before):
        word = "tie" if number >= 8 else "prefer_rejected" if number % 3 == 0 else "prefer_chosen"
        store.labels.add(pair["pair_id"], "ada", word, content_hash=hash_of(pair))
    apply_labels(store, Console(file=io.StringIO()))
    store.close()
    # The samples are invented, so nothing is known of their log-probabilities under this model.
    pairs = [pair | {f"{side}_tokens_round_trip": False for side in ("chosen", "rejected")} for pair in read_parquet(path)]
    assert len(pairs) == 8
    share = label_smoothing("from-labels", [path], run / "labels.sqlite")
    assert share == 3 / 8
    load, tokenizer = policy
    settings = {"epochs": 12, "learning_rate": 5e-3, "warmup_share": 0.0, "beta": 0.1, "loss_weights": [1.0], "global_batch_size": 4,
                "micro_batch_size": 4, "share_prompts": True, "checkpoint": "clinic", "gradient_checkpointing": False, "max_length": 512, "save_steps": 1000, "zero_stage": 0,
                "offload": "none", "bf16": False, "seed": 0, "trl": {}}
    reference = load()
    model, _, facts = train_dpo(load, tokenizer, pairs, tmp_path / "robust", loss_type=["robust"], label_smoothing=share, **settings)
    assert facts["start"]["sigmoid_loss"] == pytest.approx(0.6931, abs=1e-3)
    as_built = {pair["pair_id"]: pair for pair in before}
    for pair in pairs:
        old = as_built[pair["pair_id"]]
        flipped = pair["person_label"] == "prefer_rejected"
        assert (pair["chosen"], pair["rejected"]) == ((old["rejected"], old["chosen"]) if flipped else (old["chosen"], old["rejected"]))
        now, then = logps(model, tokenizer, pair), logps(reference, tokenizer, pair)
        assert now[0] - now[1] > then[0] - then[1], f"{'flipped' if flipped else 'kept'} pair {pair['pair_id']} was not learned"

"""A small SQLite file with questions in Spider's layout, and a tiny model with an adapter that answers them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

PET_QUESTIONS = {
    "How many pets?": "SELECT COUNT(*) FROM pet",
    "Name every pet.": "SELECT name FROM pet",
    "Name the pets older than three, oldest first.": "SELECT name FROM pet WHERE age > 3 ORDER BY age DESC",
    "What is the mean age of a pet?": "SELECT AVG(age) FROM pet",
}


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in Spider's layout: dev.json with four questions on database/pets/pets.sqlite."""
    folder = tmp_path_factory.mktemp("pets")
    (folder / "database" / "pets").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "database" / "pets" / "pets.sqlite")) as connection:
        connection.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO pet VALUES (?, ?)", [("Ada", 3), ("Bo", 5), ("Cy", 8), ("Di", 2)])
        connection.commit()
    rows = [{"db_id": "pets", "question": question, "query": gold} for question, gold in PET_QUESTIONS.items()]
    (folder / "dev.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pet_models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders {base, sft}: a tiny model that knows nothing, and an adapter on it that has learned the four answers."""
    import torch

    from sft.checkpoint import fingerprint, load_base, load_tokenizer, save_adapter
    from sft.prompt import completion_ids, prompt_hash, prompt_ids, render
    from sft.training import lora_model

    folder = tmp_path_factory.mktemp("pet_models")
    tokenizer = load_tokenizer(tiny_model)
    base = load_base(tiny_model, precision="fp32")
    with torch.no_grad():  # the random model's logits are too small to ever be sure of a token
        base.model.norm.weight.mul_(12)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = lora_model(base, rank=32, alpha=64, dropout=0.0, gradient_checkpointing=False, seed=0)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(50):
        for question, gold in PET_QUESTIONS.items():
            example = {"question": question, "context": "CREATE TABLE pet (name TEXT, age INTEGER)"}
            prompt, completion = prompt_ids(tokenizer, render(example, "compact")), completion_ids(tokenizer, gold)
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(completion)).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(
        model,
        tokenizer,
        folder / "sft",
        {
            "model": str(folder / "base"),
            "base_fingerprint": fingerprint(folder / "base"),
            "stage": "sft",
            "prompt": {"schema_style": "compact", "max_prompt_tokens": 256},
            "prompt_hash": prompt_hash(tokenizer, "compact", 256),
        },
    )
    return {name: folder / name for name in ("base", "sft")}

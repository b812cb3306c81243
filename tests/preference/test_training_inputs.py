"""What the training of a round depends on."""

from pathlib import Path
from types import SimpleNamespace

from preference.inspection.labels import LabelFile
from preference.rounds import adapter_of, inputs_hash
from preference.training_inputs import training_inputs, what_counts, words_hash
from sft.artefacts import mark_complete
from sft.configuration import DpoConfig, read_configuration

CONFIGURATION = Path(__file__).parents[2] / "configs" / "dpo.yaml"


def configured(*settings):
    return read_configuration(DpoConfig, CONFIGURATION, list(settings))


def inputs_of(run, number, *settings):
    return training_inputs(configured(*settings), SimpleNamespace(folder=run, prompt_hash="p"), number, "pairs", "weights")


def test_the_micro_batch_counts_where_a_loss_is_a_mean_over_its_tokens():
    sigmoid = ("train.loss_type=[sigmoid]", "train.loss_weights=[1.0]")
    both = [what_counts(configured(f"train.micro_batch_size={size}").train) for size in (2, 4)]
    assert (both[0]["micro_batch_size"], both[1]["micro_batch_size"]) == (2, 4)
    assert what_counts(configured(*sigmoid, "train.micro_batch_size=2").train) == what_counts(configured(*sigmoid).train)
    assert not {"share_prompts", "save_steps", "gradient_checkpointing", "attention"} & both[0].keys()


def test_a_whole_reference_is_what_was_there_before_the_key():
    assert "reference_weight" not in what_counts(configured().train)
    assert what_counts(configured("train.reference_weight=0").train) == what_counts(configured().train) | {"reference_weight": 0.0}


def test_a_round_depends_on_the_inputs_of_the_round_before(tmp_path):
    first = inputs_of(tmp_path, 1)
    assert "before" not in first and "label_noise" not in first["train"]
    mark_complete(adapter_of(tmp_path, 1), first, {})
    second = inputs_of(tmp_path, 2)
    assert second == first | {"before": inputs_hash(tmp_path, 1)}
    mark_complete(adapter_of(tmp_path, 1), inputs_of(tmp_path, 1, "train.beta=0.3"), {})
    assert inputs_of(tmp_path, 2)["before"] != second["before"]


def test_words_of_people_are_known_by_what_they_say(tmp_path):
    first, second = LabelFile(tmp_path / "a.sqlite"), LabelFile(tmp_path / "b.sqlite")
    assert words_hash(first.path) is None and not first.path.exists()
    first.comment("x", "ada", "hm")
    assert words_hash(first.path) is None, "nothing that pairs are built by"
    for name in "xy":
        first.add(name, "ada", "tie")
    for name in "yx":
        second.add(name, "ada", "tie")
    said = words_hash(first.path)
    assert said == words_hash(second.path), "the same words in another order, at another time"
    second.rank("question", "ada", {"SELECT 1": 1, "SELECT 2": 2})
    first.add("x", "ada", "prefer_chosen")
    assert len({said, words_hash(first.path), words_hash(second.path)}) == 3
    first.undo("ada")
    assert words_hash(first.path) == said
    first.close()
    second.close()


def test_training_depends_on_the_questions_that_choose_what_is_published(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.parquet").write_bytes(b"one")
    before = inputs_of(tmp_path, 1)
    (tmp_path / "data" / "dev.parquet").write_bytes(b"other")
    assert {key for key, value in inputs_of(tmp_path, 1).items() if value != before[key]} == {"dev"}

"""pack: exact ids, positions and masks by hand; that losses stay the same is a test of training."""

import torch

from sft.packing import common_prefix, pack


def row(ids, labels, schema="s"):
    return {"input_ids": ids, "labels": labels, "schema": schema}


def test_common_prefix_of_ids():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 2
    assert common_prefix([[1], [2]]) == common_prefix([[], [1]]) == 0


def test_worked_example():
    rows = [row([5, 6, 1], [-100, -100, 1]), row([5, 7, 8], [-100, 7, 8])]
    # The second row's prompt is [5] alone, and its last prompt token predicts 7: nothing is left to share.
    assert pack(rows, pad_token_id=0, attention="sdpa")["input_ids"].tolist() == [[5, 6, 1, 5, 7, 8]]
    longer = [row([4, *found["input_ids"]], [-100, *found["labels"]]) for found in rows]
    batch = pack(longer, pad_token_id=0, attention="sdpa")
    assert batch["input_ids"].tolist() == [[4, 5, 6, 1, 5, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 1, -100, 7, 8]]
    assert batch["attention_mask"].int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0, 0],
                [1, 1, 1, 1, 0, 0, 0],
                [1, 0, 0, 0, 1, 0, 0],
                [1, 0, 0, 0, 1, 1, 0],
                [1, 0, 0, 0, 1, 1, 1],
            ]
        ]
    ]


def test_eager_gets_the_same_mask_to_be_added():
    rows = [row([4, 5, 1], [-100, -100, 1]), row([4, 6, 8], [-100, -100, 8])]
    seen = pack(rows, pad_token_id=0, attention="sdpa")["attention_mask"]
    added = pack(rows, pad_token_id=0, attention="eager")["attention_mask"]
    assert seen.dtype == torch.bool and added.dtype == torch.float32
    assert torch.equal(added == 0, seen) and (added[~seen] == torch.finfo(torch.float32).min).all()


def test_packs_are_runs_of_one_schema_and_padding_belongs_to_none():
    rows = [row([4, 5, 1], [-100, -100, 1], "a"), row([4, 6, 2], [-100, -100, 2], "a"), row([4, 9], [-100, 9], "b")]
    batch = pack(rows, pad_token_id=0, attention="sdpa")
    assert batch["input_ids"].tolist() == [[4, 5, 1, 6, 2], [4, 9, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 1, -100, 2], [-100, 9, -100, -100, -100]]
    mask = batch["attention_mask"][1, 0]
    assert not mask[:2, 2:].any() and not mask[2:, :2].any()
    # Every padding token sees one token at least: a softmax over nothing would be nan.
    assert mask.any(dim=-1).all()


def test_rows_without_a_neighbour_get_the_usual_mask():
    rows = [row([4, 5, 1], [-100, -100, 1], "a"), row([4, 9], [-100, 9], "b")]
    batch = pack(rows, pad_token_id=0, attention="eager")
    assert batch["input_ids"].tolist() == [[4, 5, 1], [4, 9, 0]] and batch["position_ids"].tolist() == [
        [0, 1, 2],
        [0, 1, 0],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]

"""pack: exact ids, positions and places by hand; that losses stay the same is a test of training."""

from sft.packing import common_prefix, pack, token_trees


def test_common_prefix_of_ids():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == common_prefix([1, 2, 3], [1, 2]) == 2
    assert common_prefix([1], [2]) == common_prefix([], [1]) == 0


def test_trees_of_the_docstring():
    trees, paths = token_trees([[4, 5, 6], [4, 5, 7], [9]])
    assert trees == [[(4, 0, 4), (5, 1, 4), (6, 2, 3), (7, 2, 4)], [(9, 0, 1)]]
    assert paths == [(0, [0, 1, 2]), (0, [0, 1, 3]), (1, [0])]


def test_a_branch_may_branch_again_and_a_row_may_end_inside_another():
    """Schema [1, 2], questions [3] and [4], two answers to the first, the row [1, 2, 3] twice."""
    rows = [[1, 2, 3, 5], [1, 2, 4], [1, 2, 3, 6], [1, 2, 3], [1, 2, 3]]
    [tree], paths = token_trees(rows)
    assert tree == [(1, 0, 6), (2, 1, 6), (3, 2, 5), (5, 3, 4), (6, 3, 5), (4, 2, 6)]
    assert [path for _, path in paths] == [[0, 1, 2, 3], [0, 1, 5], [0, 1, 2, 4], [0, 1, 2], [0, 1, 2]]


def test_rows_join_where_the_tokens_they_share_cost_more_than_attention_over_both():
    """Rows of 64 tokens that share 4 cost 60 x 60 = 3,600 seen pairs and save 4 x 1,000; of 68 they cost 64 x 64."""
    for length, trees in ((64, 1), (68, 2)):
        rows = [[1, 2, 3, 4, *range(start, start + length - 4)] for start in (100, 200)]
        assert len(token_trees(rows)[0]) == trees


def test_the_last_prompt_token_predicts_the_first_of_every_answer():
    batch = pack([[4, 5, 6, 1], [4, 5, 7, 8]], [3, 2])
    assert batch["input_ids"].tolist() == [[4, 5, 6, 1, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3]]
    assert batch["sources"].tolist() == [2, 1, 4] and batch["targets"].tolist() == [2, 5, 6]
    assert batch["lines"].tolist() == [[0, 1, 2, 3, 4, 5]] and batch["cells"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["ends"].tolist() == [[6, 6, 4, 4, 6, 6]]


def test_short_trees_share_a_line_and_what_is_left_over_is_seen_by_itself_alone():
    rows = [[9, 8], [1, 2, 3, 4, 5], [7, 6]]  # nothing in common
    batch = pack(rows, [1, 4, 1])
    # Trees in order of their ids: [1 ... 5] at tokens 0 to 4, [7, 6] at 5 and 6, [9, 8] at 7 and 8.
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 7, 6, 9, 8]]
    assert batch["lines"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 0]]
    assert batch["cells"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert batch["ends"].tolist() == [[5, 5, 5, 5, 5], [2, 2, 4, 4, 5]]
    assert batch["sources"].tolist() == [7, 3, 5] and batch["targets"].tolist() == [0, 8, 10]

"""Files of a run: nothing half written, nothing overwritten without a word, shards that do not depend on the ranks."""

import errno
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sft.artefacts
from sft.artefacts import (
    atomic_path,
    content_hash,
    discard,
    file_hash,
    is_complete,
    join_shards,
    make_in_shards,
    mark_complete,
    mark_path,
    read_parquet,
    recorded_inputs,
    shard_folder,
    write_json,
    write_parquet,
)

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("note", pa.string())])
INPUTS = {"seed": 1, "data": "abc"}


# ---------------------------------------------------------------------- hashes


def test_content_hash_is_of_the_canonical_json():
    # printf '{"a":[1,"é"],"b":null}' | sha256sum
    wanted = "1e02bc81a26af2f027329541e97eef36f3290bedc6dfe043dbe66b057ecb13ba"
    assert content_hash({"b": None, "a": [1, "é"]}) == content_hash({"a": (1, "é"), "b": None}) == wanted
    assert len({content_hash(value) for value in (1, "1", 1.5, [1], None)}) == 5
    assert content_hash("\ud800") != content_hash("\ud801"), "what a model wrote may be no valid text"


def test_file_hash_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-2, the example of one block.
    assert file_hash(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(1) == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # sha256 of "1"


# -------------------------------------------------------------- atomic writing


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError("writer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary != path
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_says_which_file_what_is_left_and_what_to_do(tmp_path):
    path = tmp_path / "pairs.parquet"
    path.write_text("old")
    with pytest.raises(OSError) as error, atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.errno == errno.ENOSPC
    message = str(error.value)
    assert f"{path} could not be written: No space left on device" in message
    assert (
        "What was there before is unchanged" in message
        and "Free space" in message
        and "run the same command again" in message
    )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_is_readable_and_never_nan(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"name": "Łódź", "share": 0.5})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "Łódź",\n  "share": 0.5\n}\n'
    with pytest.raises(ValueError):
        write_json(path, {"share": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["share"] == 0.5


def test_parquet_keeps_the_types_of_columns_without_a_value(tmp_path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, [{"id": "a", "score": 1}, {"id": "b", "note": None}], SCHEMA)
    assert pq.read_schema(path) == SCHEMA
    assert read_parquet(path) == [{"id": "a", "score": 1.0, "note": None}, {"id": "b", "score": None, "note": None}]
    write_parquet(path, [], SCHEMA)
    assert pq.read_schema(path) == SCHEMA and read_parquet(path) == []


def test_few_rows_stand_in_one_row_group(tmp_path):
    write_parquet(tmp_path / "rows.parquet", [{"id": str(number)} for number in range(25_000)], SCHEMA)
    found = pq.ParquetFile(tmp_path / "rows.parquet").metadata
    assert [found.row_group(number).num_rows for number in range(found.num_row_groups)] == [10_000, 10_000, 5_000]


def test_a_column_that_the_schema_lacks_is_never_lost(tmp_path):
    with pytest.raises(AssertionError, match=r"columns \['scores'\] are not in the schema of rows.parquet"):
        write_parquet(tmp_path / "rows.parquet", [{"id": "a", "scores": 1.0}], SCHEMA)
    assert not list(tmp_path.iterdir())


def test_unreadable_parquet_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="none.parquet does not exist. Run the step that writes it"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cut.parquet is not a readable Parquet file .* Delete it"):
        read_parquet(tmp_path / "cut.parquet")


# -------------------------------------------------------------- complete marks


@pytest.fixture(params=["file", "folder"])
def target(request, tmp_path):
    """A step's output, as one file or as a folder, and how it comes to be."""
    return tmp_path / ("pairs.parquet" if request.param == "file" else "sft")


def make(target, text="rows"):
    if target.suffix:
        target.write_text(text)
    else:
        target.mkdir(exist_ok=True)
        (target / "weights").write_text(text)


def test_marks_stand_in_a_folder_and_beside_a_file(tmp_path):
    assert mark_path(tmp_path / "sft") == tmp_path / "sft" / "complete.json"
    assert mark_path(tmp_path / "pairs.parquet") == tmp_path / "pairs.complete.json"


def test_complete_only_with_its_mark(target):
    assert not is_complete(target, INPUTS)
    make(target)
    assert not is_complete(target, INPUTS)
    mark_complete(target, INPUTS, {"pairs": 3})
    assert is_complete(target, INPUTS)
    assert json.loads(mark_path(target).read_text()) == {"inputs": INPUTS, "rows": {"pairs": 3}}
    assert not list(target.parent.rglob("*begun*"))


def test_the_inputs_of_what_was_begun_and_of_what_is_finished(target):
    assert recorded_inputs(target) is None
    is_complete(target, INPUTS)
    assert recorded_inputs(target) == INPUTS
    make(target)
    mark_complete(target, INPUTS, {})
    assert recorded_inputs(target) == INPUTS


def test_inputs_are_compared_as_json(target):
    make(target)
    mark_complete(target, {"range": (1, 2)}, {})
    assert is_complete(target, {"range": (1, 2)}) and is_complete(target, {"range": [1, 2]})


def test_a_mark_without_its_output_is_not_complete(tmp_path):
    mark_complete(tmp_path / "pairs.parquet", INPUTS, {})
    assert not is_complete(tmp_path / "pairs.parquet", INPUTS)


@pytest.mark.parametrize("finished", [True, False])
def test_work_of_other_inputs_is_kept_and_the_differences_are_named(target, finished):
    is_complete(target, INPUTS)
    make(target)
    if finished:
        mark_complete(target, INPUTS, {})
    with pytest.raises(ValueError) as error:
        is_complete(target, {"seed": 2, "data": "abc", "model": "m"})
    message = str(error.value)
    assert f"{target} was made with other settings" in message
    assert (
        "seed: 1 there, 2 now" in message
        and "model: None there, 'm' now" in message
        and "data" not in message.split(")")[0]
    )
    assert "--set run=FOLDER" in message and "--overwrite" in message
    # Nothing was lost: the old settings go on.
    assert is_complete(target, INPUTS) is finished
    assert (target if target.suffix else target / "weights").read_text() == "rows"


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_deletes_and_begins_anew(target, finished):
    is_complete(target, INPUTS)
    make(target)
    if finished:
        mark_complete(target, INPUTS, {})
    assert not is_complete(target, {"seed": 2}, overwrite=True)
    assert not target.is_file() and not (target / "weights").exists()
    make(target, "new")
    mark_complete(target, {"seed": 2}, {})
    assert is_complete(target, {"seed": 2})


def test_overwrite_leaves_what_is_complete_for_the_same_inputs(target):
    make(target)
    mark_complete(target, INPUTS, {})
    assert is_complete(target, INPUTS, overwrite=True)
    assert target.exists()


def test_a_step_that_was_begun_and_made_nothing_binds_nobody(target):
    assert not is_complete(target, INPUTS)
    assert not is_complete(target, {"seed": 2})
    make(target)
    mark_complete(target, {"seed": 2}, {})
    assert is_complete(target, {"seed": 2})


def test_shards_of_other_inputs_are_work_too(tmp_path):
    target = tmp_path / "candidates.parquet"
    is_complete(target, INPUTS)
    make_in_shards(target, [1], 1, SCHEMA, lambda items: [{"id": "a"}], part=0, parts=1)
    with pytest.raises(ValueError, match="seed: 1 there, 2 now"):
        is_complete(target, {**INPUTS, "seed": 2})
    assert not is_complete(target, {**INPUTS, "seed": 2}, overwrite=True)
    assert not shard_folder(target).exists()


def test_discard_removes_output_shards_and_marks(target):
    make(target)
    mark_complete(target, INPUTS, {})
    discard(target)
    assert not list(target.parent.iterdir())
    discard(target)


# ---------------------------------------------------------------------- shards


def rows_of(items):
    return [{"id": f"{item}", "score": float(item)} for item in items]


def test_shards_joined_are_the_same_for_any_number_of_parts(tmp_path):
    files = []
    for parts in (1, 3):
        target = tmp_path / f"of{parts}" / "candidates.parquet"
        for part in reversed(range(parts)):
            make_in_shards(target, list(range(11)), 2, SCHEMA, rows_of, part=part, parts=parts)
        names = sorted(path.name for path in shard_folder(target).iterdir())
        assert names == [f"shard-{index:05d}.parquet" for index in range(6)]
        assert join_shards(target, SCHEMA) == 11
        assert not shard_folder(target).exists()
        files.append(target)
    assert read_parquet(files[0]) == [{"id": f"{item}", "score": float(item), "note": None} for item in range(11)]
    assert file_hash(files[0]) == file_hash(files[1])


def test_each_part_makes_its_own_shards_only(tmp_path):
    made = []

    def make(items):
        made.append(items)
        return rows_of(items)

    make_in_shards(tmp_path / "x.parquet", list(range(7)), 2, SCHEMA, make, part=1, parts=3)
    assert made == [[2, 3]]
    make_in_shards(tmp_path / "x.parquet", list(range(7)), 2, SCHEMA, make, part=0, parts=3)
    assert made == [[2, 3], [0, 1], [6]]


def test_a_shard_that_is_there_is_not_made_again(tmp_path):
    target, made = tmp_path / "x.parquet", []

    def make(items):
        if len(made) == 2:
            raise RuntimeError("killed")
        made.append(items)
        return rows_of(items)

    with pytest.raises(RuntimeError):
        make_in_shards(target, list(range(6)), 2, SCHEMA, make, part=0, parts=1)
    make_in_shards(
        target, list(range(6)), 2, SCHEMA, lambda items: made.append(items) or rows_of(items), part=0, parts=1
    )
    assert made == [[0, 1], [2, 3], [4, 5]]
    assert join_shards(target, SCHEMA) == 6


def test_no_space_in_the_middle_of_shards_keeps_those_before(tmp_path, monkeypatch):
    target, write = tmp_path / "x.parquet", pq.write_table

    def full(table, path, **options):
        if "00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path)

    monkeypatch.setattr(sft.artefacts.pq, "write_table", full)
    with pytest.raises(OSError, match="shard-00001.parquet could not be written: No space left"):
        make_in_shards(target, list(range(6)), 2, SCHEMA, rows_of, part=0, parts=1)
    assert [path.name for path in shard_folder(target).iterdir()] == ["shard-00000.parquet"]
    monkeypatch.undo()
    make_in_shards(target, list(range(6)), 2, SCHEMA, rows_of, part=0, parts=1)
    assert join_shards(target, SCHEMA) == 6

"""A run's folder on a small veterinary practice: questions, samples with the judge's verdicts, and pairs made of them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

CLINIC = """
CREATE TABLE owner (owner_id INTEGER PRIMARY KEY, name TEXT, city TEXT, joined TEXT);
CREATE TABLE pet (pet_id INTEGER PRIMARY KEY, name TEXT, kind TEXT, weight_kg REAL, owner_id INTEGER REFERENCES owner(owner_id));
CREATE TABLE vet (vet_id INTEGER PRIMARY KEY, name TEXT, speciality TEXT);
CREATE TABLE visit (visit_id INTEGER PRIMARY KEY, pet_id INTEGER, vet_id INTEGER, day TEXT, fee REAL,
  FOREIGN KEY (pet_id) REFERENCES pet(pet_id), FOREIGN KEY (vet_id) REFERENCES vet(vet_id));
"""
ROWS = {
    "owner": [(1, "Ada", "Lisbon", "2021-03-01"), (2, "Bo", "Porto", "2020-11-15"), (3, "Cleo", "Lisbon", "2022-07-09"),
              (4, "Dan", "Faro", "2019-01-20"), (5, "Ada", "Braga", "2023-05-30")],
    "pet": [(1, "Rex", "dog", 31.5, 1), (2, "Mia", "cat", 4.2, 1), (3, "Kiki", "parrot", 0.4, 2), (4, "Bruno", "dog", 12.0, 3),
            (5, "Tom", "cat", 5.1, 4), (6, "Luna", "cat", 3.9, 5), (7, "Otto", "dog", 44.0, None)],
    "vet": [(1, "Dr. Reis", "surgery"), (2, "Dr. Lima", "dentistry"), (3, "Dr. Costa", "surgery")],
    "visit": [(1, 1, 1, "2024-01-10", 120.0), (2, 1, 2, "2024-02-03", 60.0), (3, 2, 2, "2024-02-11", 45.0),
              (4, 4, 1, "2024-03-20", 300.0), (5, 5, 3, "2024-03-22", 80.0), (6, 5, 3, "2024-04-02", 80.0),
              (7, 6, 2, "2024-05-19", 55.0)],
}
# question, gold, further right queries, wrong ones
QUESTIONS = [
    ("How many pets are registered?", "SELECT COUNT(*) FROM pet", ["SELECT COUNT(pet_id) FROM pet"],
     ["SELECT COUNT(*) FROM owner", "SELECT COUNT(owner_id) FROM pet", "SELECT * FROM pet"]),
    ("List the names of all owners in Lisbon.", "SELECT name FROM owner WHERE city = 'Lisbon'",
     ["SELECT o.name FROM owner AS o WHERE o.city = 'Lisbon'"],
     ["SELECT name FROM owner WHERE city = 'lisbon'", "SELECT name, city FROM owner WHERE city = 'Lisbon'"]),
    ("Which pets has Ada brought in? Give the pets' names.",
     "SELECT T1.name FROM pet AS T1 JOIN owner AS T2 ON T1.owner_id = T2.owner_id WHERE T2.name = 'Ada'",
     ["SELECT name FROM pet WHERE owner_id IN (SELECT owner_id FROM owner WHERE name = 'Ada')"],
     ["SELECT name FROM pet WHERE owner_id = (SELECT owner_id FROM owner WHERE name = 'Ada')",
      "SELECT T2.name FROM pet AS T1 JOIN owner AS T2 ON T1.owner_id = T2.owner_id WHERE T2.name = 'Ada'"]),
    ("What is the total fee that each vet has earned? Show the vet's name and the total.",
     "SELECT T1.name, SUM(T2.fee) FROM vet AS T1 JOIN visit AS T2 ON T1.vet_id = T2.vet_id GROUP BY T1.vet_id",
     ["SELECT vet.name, SUM(visit.fee) FROM visit JOIN vet ON visit.vet_id = vet.vet_id GROUP BY vet.vet_id"],
     ["SELECT T1.name, COUNT(T2.fee) FROM vet AS T1 JOIN visit AS T2 ON T1.vet_id = T2.vet_id GROUP BY T1.vet_id",
      "SELECT T1.name, SUM(T2.fee) FROM vet AS T1 JOIN visit AS T2 ON T1.vet_id = T2.visit_id GROUP BY T1.vet_id",
      "SELECT T1.name, SUM(T2.fees) FROM vet AS T1 JOIN visit AS T2 ON T1.vet_id = T2.vet_id GROUP BY T1.vet_id"]),
    ("Name the heaviest dog.", "SELECT name FROM pet WHERE kind = 'dog' ORDER BY weight_kg DESC LIMIT 1",
     ["SELECT name FROM pet WHERE kind = 'dog' AND weight_kg = (SELECT MAX(weight_kg) FROM pet WHERE kind = 'dog')"],
     ["SELECT name FROM pet WHERE kind = 'dog' ORDER BY weight_kg LIMIT 1", "SELECT name FROM pet ORDER BY weight_kg LIMIT 1",
      "SELECT MAX(weight_kg) FROM pet WHERE kind = 'dog'"]),
    ("Which cities have more than one owner?", "SELECT city FROM owner GROUP BY city HAVING COUNT(*) > 1",
     ["SELECT city FROM owner GROUP BY city HAVING COUNT(owner_id) >= 2"],
     ["SELECT city FROM owner GROUP BY city HAVING COUNT(*) > 2", "SELECT city, COUNT(*) FROM owner GROUP BY city",
      "SELECT DISTINCT city FROM owner"]),
    ("Which pets have never visited a vet?", "SELECT name FROM pet WHERE pet_id NOT IN (SELECT pet_id FROM visit)",
     ["SELECT name FROM pet WHERE NOT EXISTS (SELECT 1 FROM visit WHERE visit.pet_id = pet.pet_id)"],
     ["SELECT name FROM pet WHERE pet_id IN (SELECT pet_id FROM visit)",
      "SELECT T1.name FROM pet AS T1 JOIN visit AS T2 ON T1.pet_id = T2.pet_id WHERE T2.visit_id IS NULL"]),
    ("What is the average weight of each kind of pet?", "SELECT kind, AVG(weight_kg) FROM pet GROUP BY kind",
     ["SELECT kind, SUM(weight_kg) / COUNT(weight_kg) FROM pet GROUP BY kind"],
     ["SELECT kind, AVG(weight_kg) FROM pet", "SELECT AVG(weight_kg) FROM pet GROUP BY kind",
      "SELECT kind, MAX(weight_kg) FROM pet GROUP BY kind"]),
    ("On which days did a surgeon see a cat?",
     "SELECT T1.day FROM visit AS T1 JOIN vet AS T2 ON T1.vet_id = T2.vet_id JOIN pet AS T3 ON T1.pet_id = T3.pet_id "
     "WHERE T2.speciality = 'surgery' AND T3.kind = 'cat'",
     ["SELECT day FROM visit WHERE vet_id IN (SELECT vet_id FROM vet WHERE speciality = 'surgery') AND pet_id IN "
      "(SELECT pet_id FROM pet WHERE kind = 'cat')"],
     ["SELECT T1.day FROM visit AS T1 JOIN vet AS T2 ON T1.vet_id = T2.vet_id JOIN pet AS T3 ON T1.pet_id = T3.pet_id "
      "WHERE T2.speciality = 'surgery' OR T3.kind = 'cat'",
      "SELECT T1.day FROM visit AS T1 JOIN vet AS T2 ON T1.vet_id = T2.vet_id WHERE T2.speciality = 'surgery'"]),
    ("How many visits cost more than 70?", "SELECT COUNT(*) FROM visit WHERE fee > 70", ["SELECT COUNT(visit_id) FROM visit WHERE fee > 70"],
     ["SELECT COUNT(*) FROM visit WHERE fee >= 55", "SELECT COUNT(*) FROM visit WHERE fee > '70'", "SELECT SUM(fee) FROM visit WHERE fee > 70"]),
    ("List all pets from the lightest to the heaviest.", "SELECT name FROM pet ORDER BY weight_kg",
     ["SELECT name FROM pet ORDER BY weight_kg ASC"], ["SELECT name FROM pet ORDER BY weight_kg DESC", "SELECT name FROM pet ORDER BY name"]),
    ("Which owners joined before 2021?", "SELECT name FROM owner WHERE joined < '2021-01-01'",
     ["SELECT name FROM owner WHERE strftime('%Y', joined) < '2021'"],
     ["SELECT name FROM owner WHERE joined < 2021", "SELECT name FROM owner WHERE joined > '2021-01-01'"]),
]


def make_run(folder: Path, copies: int = 1) -> Path:
    """Writes data/train.parquet and round-1/ as the two stages do; with `copies`, the questions stand there so many times."""
    from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs, verdict_key
    from preference.sampling import CANDIDATES_SCHEMA, VERDICTS_SCHEMA
    from reward.judge import Judge
    from reward.queries import query_kinds
    from sft.artefacts import write_parquet

    folder.mkdir(parents=True)
    database = folder / "clinic.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(CLINIC)
        for table, rows in ROWS.items():
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        connection.commit()
    context = ";\n".join(" ".join(statement.split()) for statement in CLINIC.strip().split(";") if statement.strip())
    examples, candidates, verdicts = [], [], []
    with Judge(seed=7) as judge:
        for number, (question, gold, right, wrong) in enumerate(QUESTIONS):
            line = judge.question({"id": "x", "gold": gold, "database": str(database), "candidates": [gold, *right, *wrong]})
            for copy in range(copies):
                example_id = f"clinic/{number + 1:02}" + (f"-{copy + 1}" if copy else "")
                examples.append({
                    "example_id": example_id, "source": "clinic" if copy % 3 == 0 else "clinic (again)", "question": question + " " * copy,
                    "context": context, "database": str(database), "gold_sql": gold, "kind": query_kinds(gold), "gold": gold,
                    "evidence": None, "answerable": True, "split": "train", "license": None})
                found = {}
                for index, (sql, verdict) in enumerate(zip([gold, *right, *wrong], line["verdicts"], strict=True)):
                    candidates.append({
                        "example_id": example_id, "sample_index": index, "round": 1, "completion": sql, "sql": sql, "abstained": False,
                        "token_count": len(sql.split()) * 2, "logp_sum": -1.5 - 0.1 * len(sql) - 0.37 * index, "ended_with_eos": True,
                        "tokens_round_trip": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 7,
                        "checkpoint_hash": "5c1f0a9b2e77", "prompt_hash": "9d3e5b7a1c20"})
                    found.setdefault(verdict_key(candidates[-1]), verdict)
                verdicts += [{
                    "example_id": example_id, "canonical_sql": canonical, "verdict": verdict["verdict"], "reason": verdict["reason"],
                    "trace": json.dumps(verdict["trace"]), "result_hash": verdict["trace"].get("result_hash"),
                    "suite_hash": line["gold"]["suite_hash"], "kill_score": line["gold"]["kill_score"],
                } for canonical, verdict in found.items()]
    pairs, dropped = build_pairs(examples, candidates, verdicts, strategy="nearest", per_question=2, schema_style="compact", seed=7)
    import pyarrow as pa

    (folder / "data").mkdir()
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(examples), folder / "data" / "train.parquet")
    for name, rows, schema in (("candidates", candidates, CANDIDATES_SCHEMA), ("verdicts", verdicts, VERDICTS_SCHEMA),
                               ("pairs", pairs, PAIRS_SCHEMA), ("dropped", dropped, DROPPED_SCHEMA)):
        write_parquet(folder / "round-1" / f"{name}.parquet", rows, schema)
    return folder


@pytest.fixture(scope="session")
def clinic_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with 12 questions and about two pairs each; copy it before changing anything in it."""
    return make_run(tmp_path_factory.mktemp("clinic") / "run")


@pytest.fixture(scope="session")
def copied_clinic_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every question three times, in all 69 pairs."""
    return make_run(tmp_path_factory.mktemp("clinic") / "copied", copies=3)

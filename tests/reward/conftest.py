"""Databases that the reward's tests run on."""

import sqlite3
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the development data is not here: {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def make_database(tmp_path_factory):
    """A SQLite file made of a script."""

    def make(script: str, name: str) -> str:
        path = tmp_path_factory.mktemp("databases") / f"{name}.sqlite"
        connection = sqlite3.connect(path)
        connection.executescript(script)
        connection.commit()
        connection.close()
        return str(path)

    return make


@pytest.fixture(scope="session")
def shop(make_database) -> str:
    """The database of cases.jsonl."""
    return make_database((Path(__file__).parent / "cases_database.sql").read_text(), "shop")

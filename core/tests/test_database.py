"""Databases that many short-lived processes share."""

import os
import sqlite3

import pytest

from transom.errors import ConfigError, DriverError
from transom.services import database

SCHEMA = "CREATE TABLE word (text TEXT NOT NULL)"


def test_a_missing_database_is_made_with_its_directory(tmp_path):
    path = tmp_path / "deep" / "words.db"
    db = database.connect(path, schema=SCHEMA)
    db.execute("INSERT INTO word VALUES ('a')")
    database.close(db, path)
    db = database.connect(path, schema=SCHEMA)
    assert db.execute("SELECT text FROM word").fetchall() == [("a",)]
    db.close()


def test_closing_leaves_the_log_where_it_is_and_every_commit_readable(tmp_path):
    path = tmp_path / "words.db"
    for number in range(5):
        db = database.connect(path, schema=SCHEMA)
        db.execute("INSERT INTO word VALUES (?)", (str(number),))
        database.close(db, path)
        assert os.path.getsize(f"{path}-wal") > 0
    db = database.connect(path, schema=SCHEMA)
    assert db.execute("SELECT count(*) FROM word").fetchone() == (5,)
    db.close()


def test_a_log_that_grew_long_is_moved_into_the_database_all_the_same(tmp_path):
    path = tmp_path / "words.db"
    for _ in range(30):
        db = database.connect(path, schema=SCHEMA)
        for _ in range(100):
            db.execute("INSERT INTO word VALUES (?)", ("x" * 500,))
        database.close(db, path)
    assert os.path.getsize(path) > 1_000_000
    assert os.path.getsize(f"{path}-wal") < 8_000_000


def test_many_processes_may_make_one_database_at_once(tmp_path):
    path = tmp_path / "words.db"
    children = []
    for number in range(16):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                db = database.connect(path, schema=SCHEMA)
                with database.transaction(db):
                    db.execute("INSERT INTO word VALUES (?)", (str(number),))
                database.close(db, path)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 16
    db = database.connect(path, schema=SCHEMA)
    assert db.execute("SELECT count(*) FROM word").fetchone() == (16,)
    db.close()


def test_a_failed_transaction_changes_nothing_and_an_inner_one_is_part_of_the_outer(tmp_path):
    db = database.connect(tmp_path / "words.db", schema=SCHEMA)
    with pytest.raises(sqlite3.IntegrityError), database.transaction(db):
        with database.transaction(db):
            db.execute("INSERT INTO word VALUES ('kept?')")
        db.execute("INSERT INTO word VALUES (NULL)")
    assert db.execute("SELECT count(*) FROM word").fetchone() == (0,)
    db.close()


def test_a_database_of_a_newer_release_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "words.db"
    database.connect(path, schema=SCHEMA, version=7).close()
    with pytest.raises(ConfigError) as error:
        database.connect(path, schema=SCHEMA, version=1)
    assert str(error.value) == f"{path} is of a newer transom (schema 7): upgrade, or use another data-root"


def test_a_file_that_is_no_database_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "words.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DriverError) as error:
        database.connect(path, schema=SCHEMA)
    assert str(error.value) == (
        f"database: opening {path} failed: file is not a database; restore it from a backup, or move it away"
    )


def test_a_database_of_an_older_schema_is_brought_up_step_by_step_and_all_or_nothing(tmp_path):
    path = tmp_path / "words.db"
    database.connect(path, schema=SCHEMA).close()
    steps = ("CREATE TABLE two (a)", "CREATE TABLE three (a); CREATE TABLE three (b)")
    with pytest.raises(sqlite3.OperationalError):
        database.connect(path, schema="", version=3, upgrades=steps)
    db = database.connect(path, schema="", version=2, upgrades=steps)
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    assert "two" in names
    assert "three" not in names

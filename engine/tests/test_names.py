"""Names for containers that were given none."""

from __future__ import annotations

import re
import subprocess
import sys

from transom_engine.flags import NAME
from transom_engine.names_generator import ADJECTIVES, SURNAMES, generate


def test_there_are_many_words_each_once():
    assert len(ADJECTIVES) >= 80
    assert len(SURNAMES) >= 120
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(SURNAMES)) == len(SURNAMES)
    assert all(re.fullmatch("[a-z]{2,}", word) for word in (*ADJECTIVES, *SURNAMES))


def test_a_name_is_an_adjective_and_a_surname_and_a_valid_container_name():
    name = generate(taken=lambda name: False)
    adjective, surname = name.split("_")
    assert adjective in ADJECTIVES
    assert surname in SURNAMES
    assert NAME.fullmatch(name)


def test_a_taken_name_gets_digits_until_it_is_free():
    asked = []
    name = generate(taken=lambda name: asked.append(name) or len(asked) < 4)
    assert re.fullmatch("[a-z]+_[a-z]+[0-9]{3}", name)
    assert asked[-1] == name


def test_names_never_repeat_however_many_are_taken():
    names: set[str] = set()
    for _ in range(5000):
        name = generate(taken=names.__contains__)
        assert name not in names
        names.add(name)


def test_names_differ_from_process_to_process():
    program = "from transom_engine.names_generator import generate; print(generate(taken=lambda n: False))"
    names = {subprocess.check_output([sys.executable, "-c", program]) for _ in range(3)}
    assert len(names) > 1


def test_the_module_loads_without_hashlib():
    program = "import sys, transom_engine.names_generator; print('random' in sys.modules or 'hashlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program]) == b"False\n"

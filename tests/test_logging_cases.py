"""The catalogue of cases for log drivers keeps to what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "logging-cases.md").read_text()


def test_every_number_is_in_the_catalogue():
    ranges = re.sub(r"C46 to C51", " ".join(f"C{n}" for n in range(46, 52)), PAGE)
    assert {int(n) for n in re.findall(r"\b[FPBRTWLCSKOE](\d+)\b", ranges)} == set(range(1, 64))


def test_every_test_that_it_names_exists():
    sources = [*ROOT.glob("**/tests/**/*.py"), *(ROOT / "conformance/src").rglob("*.py")]
    code = "".join(path.read_text() for path in sources if ".venv" not in path.parts)
    assert [name for name in set(re.findall(r"`(test_\w+)`", PAGE)) if f"def {name}(" not in code] == []

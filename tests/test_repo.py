"""The repository keeps its own rules: each test is a rule, and names what breaks it."""

import ast
import importlib
import io
import re
import subprocess
import tokenize
import tomllib
from pathlib import Path

import pytest

import transom
from transom.contract import KINDS
from transom.drivers import contract_of, operations_of

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
DISTRIBUTIONS = [ROOT / "core", ROOT / "conformance", ROOT / "engine", *PLUGINS]
CORE_LINES = 7_500
"""More than the plan's 2,000: docs/architecture.md says where they are. They may become fewer, not more.

What several drivers of a kind share is here, once, in place of in each of them: labels of layers, diffs against any
ancestor, the comparison of layers with their tars, and id maps, none of which a storage driver has to do itself.
"""

# Words that say more than one thing: a mode of the UTS, IPC, PID or cgroup namespace, a type of file system, not only
# a driver.
ALSO_MODES = {"host", "none", "container", "overlay"}


def label(path):
    return str(path.relative_to(ROOT))


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts():
    for path in tracked():
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue  # a binary file has no words


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).glob("src/**/*.py"))


def test_all_distributions_have_the_same_version():
    versions = {label(folder): project(folder)["version"] for folder in DISTRIBUTIONS}
    assert {*versions.values()} == {transom.__version__}, versions


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=label)
def test_a_distribution_asks_for_the_core_of_its_own_minor_version(folder):
    major, minor, _ = project(folder)["version"].split(".")
    asked = [text for text in project(folder).get("dependencies", []) if text.startswith("transom-core")]
    wanted = [] if folder.name == "core" else [f"transom-core>={major}.{minor},<{major}.{int(minor) + 1}"]
    assert asked == wanted


def test_the_engines_extra_brings_every_driver():
    extra = project(ROOT / "engine")["optional-dependencies"]["drivers"]
    assert extra == [f"{project(folder)['name']}>=0.1,<0.2" for folder in PLUGINS]


@pytest.mark.parametrize("folder", PLUGINS, ids=label)
def test_a_plugin_is_named_after_its_kind_and_driver(folder):
    kind, name = folder.parent.name, folder.name
    module = f"transom_{kind}_{name}".replace("-", "_")
    assert project(folder)["name"] == f"transom-{kind}-{name}"
    assert (folder / "src" / module / "__init__.py").is_file()
    assert (folder / "src" / module / "py.typed").is_file()
    assert name in project(folder)["entry-points"][f"transom.{kind}"]


@pytest.mark.parametrize("folder", PLUGINS, ids=label)
def test_a_plugin_is_complete_in_itself(folder):
    tests = list(folder.glob("tests/test_*.py"))
    assert tests, "no tests of its own"
    assert any("transom_conformance" in path.read_text() for path in tests), "its tests run no conformance suite"


@pytest.mark.parametrize("folder", PLUGINS, ids=label)
def test_an_entry_point_names_a_class_of_its_kind(folder):
    kind = folder.parent.name
    assert kind in KINDS
    for name, target in project(folder)["entry-points"][f"transom.{kind}"].items():
        module, _, attribute = target.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        assert issubclass(cls, contract_of(kind))
        assert cls.name == name


@pytest.mark.parametrize("folder", PLUGINS, ids=label)
def test_a_readme_says_what_the_options_are(folder):
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# {project(folder)['name']}\n")
    for target in project(folder)["entry-points"][f"transom.{folder.parent.name}"].values():
        module, _, attribute = target.partition(":")
        options = getattr(importlib.import_module(module), attribute).Options.__struct_encode_fields__
        missing = [option for option in options if f"`{option}`" not in readme and f".{option}`" not in readme]
        assert not missing, f"{missing} in no table of {label(folder / 'README.md')}"
        if not options:
            assert re.search(r"^- Options: none|^## Options\n[^#]*(^\||\bNone\b|\bno options\b)", readme, re.M)


def test_no_file_names_a_package_registry():
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + "hosted", "index" + r"-url\s+http"]))
    assert [label(path) for path, text in texts() if hosts.search(text)] == []


def test_no_file_names_the_place_it_was_written_in():
    place = re.compile(re.escape(str(ROOT)) + r"\b|/" + r"work/(main|shared)|\bissue #?[0-9]")
    assert [label(path) for path, text in texts() if place.search(text)] == []


def code_lines(path):
    """Count the lines that hold code: not blank, no comment, no docstring."""
    source = path.read_text()
    prose = set()
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", ()) if isinstance(getattr(node, "body", None), list) else ():
            if isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str):
                prose |= {*range(statement.lineno, statement.end_lineno + 1)}
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            code |= {*range(token.start[0], token.end[0] + 1)}
    return len(code - prose)


def test_prose_and_blank_lines_are_no_code(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        '"""Prose,\n\nlong."""\n\n# a remark\nx = (\n    1,\n)\n\n\ndef f():\n    """Prose."""\n'
        '    return """a\n\nb"""\n'
    )
    assert code_lines(file) == 7


def test_the_core_stays_small():
    floors = {"heart": 0, "services": 0}
    for path in sources("core"):
        floors["services" if "services" in path.parts else "heart"] += code_lines(path)
    total = sum(floors.values())
    print(f"transom-core: {total} lines of code {floors}")
    assert total <= CORE_LINES, f"transom-core has {total} lines of code {floors}: remove some before you add"


def driver_names():
    names = {name for folder in PLUGINS for name in project(folder)["entry-points"][f"transom.{folder.parent.name}"]}
    return names - {"local"}  # also the name of Docker's volume driver, which is none of ours


def decisions_by_name(tree, names):
    """Yield the line of each comparison with a driver's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        said = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)} & names
        if said - ALSO_MODES or (said and re.search(r"driver|network", ast.unparse(node))):
            yield node.lineno


@pytest.mark.parametrize(
    "text", ['if name == "overlay2": pass', 'x = driver in ("a", "host")', 'a.network_mode != "none"']
)
def test_a_decision_by_a_drivers_name_is_seen(text):
    assert [*decisions_by_name(ast.parse(text), {"overlay2", "host", "none"})]


def test_core_and_engine_decide_by_capability_never_by_a_drivers_name():
    found = [
        f"{label(path)}:{line}"
        for path in sources("core", "engine", "conformance")
        for line in decisions_by_name(ast.parse(path.read_text()), driver_names())
    ]
    assert found == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_of_a_contract_is_documented(kind):
    contract = contract_of(kind)
    assert importlib.import_module(contract.__module__).__doc__
    assert [name for name in operations_of(contract) if not getattr(contract, name).__doc__] == []


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=label)
def test_public_functions_and_classes_have_a_docstring(folder):
    silent = []
    for path in sources(folder):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                silent += [] if ast.get_docstring(node) else [f"{label(path)}:{node.lineno} {node.name}"]
    assert silent == []


def test_an_ignored_type_error_has_a_reason():
    # mypy cannot infer a lambda with a default, which binds a loop's variable: that reason is always the same.
    bare = re.compile(r"^(?!.*lambda .*=).*#\s*type:\s*" + r"ignore(\[[\w,\s-]+\])?\s*$", re.M)
    assert [label(path) for path in sources(*DISTRIBUTIONS) if bare.search(path.read_text())] == []


def test_every_page_of_the_documentation_is_in_the_navigation():
    settings = ROOT / "mkdocs.yml"
    if not settings.exists():
        pytest.fail("no mkdocs.yml")
    named = {*re.findall(r"[\w./-]+\.md", settings.read_text())}
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    pages = {page for page in pages if not page.startswith("examples/")}
    assert pages == named


def test_the_import_rules_name_every_distribution():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    modules = {path.name for folder in DISTRIBUTIONS for path in (folder / "src").iterdir() if path.is_dir()}
    modules = {name for name in modules if not name.endswith((".egg-info", "__pycache__"))}
    assert {*settings["root_packages"]} == modules
    floors = [{*map(str.strip, floor.split("|"))} for floor in settings["contracts"][0]["layers"]]
    assert floors == [modules - {"transom"}, {"transom"}]

"""The documentation says what the code says: built without a warning, and what it shows has been run."""

import glob
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from transom.config import IGNORED, KEYS, ORDER, load
from transom.contract import KINDS
from transom.drivers import contract_of, operations_of
from transom_conformance.skeleton import files

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="no mkdocs in this environment: `make run` installs it"
)


class Text(HTMLParser):
    """What a reader sees of a page, in one line, and where its links lead."""

    def __init__(self, html):
        super().__init__()
        self.words, self.links, self.anchors = [], [], set()
        self.feed(html)
        self.text = " ".join("".join(self.words).split())

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        self.links += [found["href"]] if tag == "a" and "href" in found else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [BIN / "mkdocs", "build", "--strict", "--quiet", "--site-dir", place], cwd=ROOT, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return place


def read(site, page):
    return Text((site / page).read_text())


def plain(text):
    """Compare without regard to spaces, which highlighting and line breaks move."""
    return re.sub(r"\s+", "", text).replace(",)", ")")


def test_the_site_builds_without_a_warning_and_every_page_is_in_the_navigation(site):
    navigation = {os.path.normpath(link.partition("#")[0]) for link in read(site, "index.html").links}
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")} - {"404.html"}
    assert pages - navigation == set()
    assert len(pages) >= len(PAGES) + len(KINDS) + 1


def test_every_link_inside_the_site_leads_somewhere(site):
    pages = {path: read(site, path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or path.name == "404.html":
                continue
            place = Path(os.path.normpath(path.parent / target)) if target else path
            place = place / "index.html" if place.is_dir() else place
            assert place.exists(), f"{path.relative_to(site)} links to {link}"
            assert not anchor or anchor in pages[place].anchors, f"{path.relative_to(site)} links to {link}"


def test_nothing_is_loaded_from_another_host(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        loaded = re.findall(r"""(?:src=|url\(|rel="stylesheet" href=)["']?(https?:[^"')\s>]+)""", path.read_text())
        assert loaded == [], f"{path.relative_to(site)} loads {loaded}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_of_a_contract_is_on_its_page_with_its_signature(site, kind):
    pages = plain(read(site, f"reference/{kind}.html").text) + plain(read(site, "reference/driver.html").text)
    for name, method in operations_of(contract_of(kind)).items():
        found = inspect.signature(method)
        parameters = [p for p in found.parameters.values() if p.name != "self"]
        wanted = plain(f"{name}{found.replace(parameters=parameters)}".replace("'", ""))
        assert wanted in pages.replace(",)", ")"), f"{kind}.{name} is not described as {wanted}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_driver_of_the_repository_has_a_page(site, kind):
    for readme in ROOT.glob(f"plugins/{kind}/*/README.md"):
        assert (site / "drivers" / f"{kind}-{readme.parent.name}.html").exists()


def test_every_key_of_the_configuration_is_described(site):
    text = read(site, "selecting-drivers.html").text
    assert [key for key in sorted(KEYS | IGNORED.keys()) if key not in text] == []
    assert [reason for reason in IGNORED.values() if reason not in text] == []


def test_a_key_is_marked_as_without_effect_exactly_while_nothing_reads_it():
    meanings = json.loads((ROOT / "docs" / "keys.json").read_text())
    assert meanings.keys() == KEYS
    sources = [path for place in ("core/src", "engine/src") for path in (ROOT / place).rglob("*.py")]
    code = "".join(path.read_text() for path in sources)
    own = (ROOT / "core/src/transom/config.py").read_text()
    marked = {key for key, text in meanings.items() if text.endswith("(no effect yet)")}
    names = {key: key.removeprefix("transom.").replace("-", "_") for key in KEYS}
    read = {key for key in KEYS if key.endswith("-driver")}  # `Config.drivers` puts their names together
    read |= {k for k, n in names.items() if re.search(rf"\bconfig\.{n}\b", code) or re.search(rf"\bself\.{n}\b", own)}
    assert sorted(marked & read) == [], "these are read by now: take the mark away in docs/keys.json"
    assert sorted(KEYS - read - marked) == [], "nothing reads these: mark them in docs/keys.json"


def test_the_order_in_which_drivers_are_tried_is_described_and_has_no_vfs(site):
    text = read(site, "selecting-drivers.html").text
    for kind in ("storage", "network", "logging", "limits"):
        assert f"{kind} {', '.join(ORDER[kind])}" in re.sub(r"\s+", " ", text)
    assert "vfs" not in ORDER["storage"]
    assert "vfs is never chosen unasked" in text


def test_every_command_is_listed(site):
    text = read(site, "commands.html").text
    listed = subprocess.run([BIN / "transom", "--help"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^  ([a-z]+)  ", listed.partition("Commands:")[2], re.MULTILINE)
    assert len(names) > 30
    assert [name for name in names if f"transom {name}" not in text] == []


def test_every_number_of_the_catalogue_of_storage_cases_has_a_case_or_a_reason(site):
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / "storage-cases.md").read_text(), re.M)
    rows += re.findall(r"<td>([\d, ]+)</td>", (site / "storage-cases.html").read_text())
    found = {int(number) for row in rows for number in row.split(",")}
    assert sorted({*range(1, 73)} - found) == [49]  # which the page says itself


def test_every_configuration_shown_is_valid(tmp_path):
    shown = [
        text
        for page in PAGES
        for text in re.findall(r"```json\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    ]
    assert len(shown) >= 3
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        config = load(path=str(file), environ={}, overrides={})
        assert set(config.origin.values()) == {f"file {file}"}


def test_every_command_line_shown_names_a_command_and_flags_that_exist():
    from transom_engine.cli import _COMMANDS

    for page in PAGES:
        text = (ROOT / "docs" / page).read_text()
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
            for line in re.findall(r"^(?:# )?transom (.*)", block, re.MULTILINE):
                words = iter(line.split())
                command = next((w for w in words if not w.startswith("-") and "/" not in w and w != "sample"), "")
                assert command in {*_COMMANDS, "conformance", "new"} or "COMMAND" in line, f"{page}: transom {line}"


def test_the_commands_of_getting_started_work_in_the_order_shown(transom, busybox_tree, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("not root: containers need namespaces, mounts and interfaces")
    (tmp_path / "root-file-system").symlink_to(busybox_tree)
    # Control groups of its own: `doctor --repair` may find nothing of anybody else's on this host.
    parent = f"transom-test-{os.urandom(6).hex()}"
    options = {name: {"parent": parent} for name in ("cgroup1", "cgroup2")}
    (tmp_path / "daemon.json").write_text(json.dumps({"transom": {"driver-opts": {"limits": options}}}))
    transom.env["TRANSOM_CONFIG"] = str(tmp_path / "daemon.json")
    text = (ROOT / "docs" / "getting-started.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.removeprefix("transom ") for line in lines if line.startswith("transom ")]
    ran = []
    for command in commands:
        words = shlex.split(command.replace("/tmp/try", f"{tmp_path}/try"), comments=True)
        if words[0] == "pull":
            continue  # a registry is another host
        done = transom.call(*words, cwd=tmp_path)
        assert done.code == 0, f"{command}: {done.err}{done.out}"
        ran.append(words[0])
    for group in glob.glob(f"/sys/fs/cgroup/*/{parent}"):
        os.rmdir(group)
    assert {"run", "import", "ps", "logs", "stats", "exec", "rm", "drivers", "config"} <= {*ran}


def test_the_tutorial_shows_what_is_written_and_nothing_else(site):
    page = plain(read(site, "writing-a-driver.html").text)
    for kind in KINDS:
        written = files(kind, "sample")
        assert plain(written[f"src/transom_{kind}_sample/__init__.py"]) in page
    assert plain(files("storage", "sample")["tests/test_conformance.py"]) in page
    timings = ROOT / "docs/examples/transom-timings/src/transom_timings/__init__.py"
    assert plain(timings.read_text()) in page


def test_no_page_shows_a_directive_in_place_of_what_it_stands_for(site):
    for path in site.rglob("*.html"):
        if "/source/" not in str(path):
            assert not re.search(r"--8\s*&lt;|<!-- (table|skeleton|file):", path.read_text()), path.relative_to(site)


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_of_a_suite_is_listed_and_leads_to_its_source(site, kind):
    page = read(site, f"suites/{kind}.html")
    suite = getattr(importlib.import_module(f"transom_conformance.{kind}"), f"{kind.title()}Suite")
    cases = [name for name in dir(suite) if name.startswith("test_")]
    assert len(cases) > 10
    for name in cases:
        assert name.removeprefix("test_").replace("_", " ") in page.text
    assert sum("/source/" in f"/{link}" for link in page.links) >= len(cases)


def test_a_drivers_page_has_each_option_with_its_default_from_the_code(site):
    text = read(site, "drivers/logging-json-file.html").text
    assert "max-file" in text.partition("In the code")[2]


def test_each_mistake_shown_is_asserted_by_a_test():
    tests = "".join(path.read_text() for path in [*ROOT.glob("core/tests/*.py"), *ROOT.glob("conformance/tests/*.py")])
    said = re.findall(r"^\|[^|]+\| `(.*?)`", (ROOT / "docs" / "mistakes.md").read_text(), re.MULTILINE)
    assert len(said) > 10
    for text in said:
        words = max(re.split(r"[A-Z]{4,}|'[^']*'|\W(?:mine|one|two)\W.*|\d", text), key=len).strip(" ;:(")
        assert words in tests, f"no test asserts {words!r}"

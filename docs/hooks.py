"""What the site takes from the code: a page for each contract, one for each driver, and the tables of the others.

MkDocs calls the functions named ``on_...`` (mkdocs.yml: hooks). Nothing here is imported by the product.
"""

# A script of the build, like the tests:
# ruff: noqa: ANN001, ANN201, ANN202

import inspect
import re
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "storage": "Storage",
    "network": "Network",
    "logging": "Logging",
    "limits": "Resource limits",
    "auth": "Auth",
}


def on_config(config):
    """Add the generated pages to the navigation."""
    drivers = [{title: [f"drivers/{kind}-{name}.md" for name, _ in drivers_of(kind)]} for kind, title in KINDS.items()]
    contracts = ["reference/driver.md", *(f"reference/{kind}.md" for kind in KINDS)]
    suites = [f"suites/{kind}.md" for kind in KINDS]
    named = {kind: [n for n in suite_modules() if n.partition(".")[0] == kind] for kind in KINDS}
    sources = [{title: [f"suites/source/{n}.md" for n in named[kind]]} for kind, title in KINDS.items()]
    shown = [{"Suites": suites}, {"Sources of the suites": sources}]
    config["nav"] = [*config["nav"], {"Drivers": drivers}, {"Contracts": contracts}, *shown]
    return config


def on_files(files, config):
    """Make the generated pages."""
    from mkdocs.structure.files import File

    pages = {"reference/driver.md": driver_page()}
    pages |= {f"suites/source/{name}.md": source_page(name, path) for name, path in suite_modules().items()}
    for kind in KINDS:
        pages[f"reference/{kind}.md"] = contract_page(kind)
        pages[f"suites/{kind}.md"] = suite_page(kind)
        for name, readme in drivers_of(kind):
            pages[f"drivers/{kind}-{name}.md"] = driver_readme(kind, name, readme)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put in what comes from code, where a page has ``<!-- table: NAME -->``, ``skeleton: ...`` or ``file: ...``."""
    markdown = re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), markdown)
    markdown = re.sub(r"<!-- skeleton: (\w+) (\S+) -->", lambda match: skeleton_file(match[1], match[2]), markdown)
    return re.sub(r"<!-- file: (\S+) -->", lambda match: fenced(match[1], (ROOT / match[1]).read_text()), markdown)


def skeleton_file(kind, path):
    """Show a file of what ``transom new KIND sample`` writes."""
    from transom_conformance.skeleton import files

    return fenced(path, files(kind, "sample")[path])


def fenced(path, text):
    """Show a file as code."""
    language = {".py": "python", ".toml": "toml", ".yml": "yaml", ".json": "json"}.get(Path(path).suffix, "text")
    return f'```{language} title="{path}"\n{text.rstrip()}\n```'


# Drivers


def drivers_of(kind):
    """List the drivers of the repository: name and README."""
    return sorted((path.parent.name, path) for path in ROOT.glob(f"plugins/{kind}/*/README.md"))


def driver_readme(kind, name, readme):
    """Make a driver's page of its README, under the driver's name."""
    text = readme.read_text()
    _, _, body = text.partition("\n")
    links = re.compile(r"\]\((?:\.\./)+(\w+)/([\w-]+)/README\.md\)")
    body = links.sub(lambda m: f"]({m[1]}-{m[2]}.md)" if m[1] in KINDS else f"]({kind}-{m[2]}.md)", body)
    return f"---\ntitle: {name}\n---\n\n# {name}: {KINDS[kind].lower()} driver\n{body}\n\n{driver_facts(kind, name)}\n"


def driver_facts(kind, name):
    """Describe what the driver's class says of itself: its capabilities, and each set of options that it takes."""
    from transom.drivers import _find

    _, cls = _find(kind, name)
    parts = ["## In the code", f"Capabilities: {', '.join(f'`{c}`' for c in sorted(cls.capabilities)) or 'none'}."]
    for attribute in sorted(a for a in dir(cls) if a.endswith("Options")):
        fields = msgspec.structs.fields(getattr(cls, attribute))
        rows = []
        for field in fields:
            text = cls.option_docs.get(field.encode_name) or cls.option_docs.get(field.name, "")
            rows.append(f"| `{field.encode_name}` | {inline(text)} | {_kind(field.type)} | {_default(field)} |")
        table = "| option | meaning | value | default |\n|---|---|---|---|\n" + "\n".join(rows)
        title = {"Options": "Options of the driver"}.get(attribute, f"{attribute.removesuffix('Options')} options")
        parts += [f"### {title}", table] if rows else []
    return "\n\n".join(parts)


# Suites


def suite_modules():
    """Return the modules of the suites by name, with their files."""
    top = ROOT / "conformance/src/transom_conformance"
    found = {}
    for kind in KINDS:
        for path in sorted([*top.glob(f"{kind}.py"), *top.glob(f"{kind}/*.py")]):
            module = ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
            found[module] = path
    return found


def source_page(name, path):
    """Show a module of a suite, so that cases can lead to their lines."""
    return f'---\ntitle: {name}\n---\n\n# {name}\n\n```python linenums="1"\n{path.read_text().rstrip()}\n```\n'


def suite_page(kind):
    """List what each case of a suite proves, what it needs of a driver, and where it is."""
    from importlib import import_module

    from transom_conformance.runner import _group, _sentence

    suite = getattr(import_module(f"transom_conformance.{kind}"), f"{kind.title()}Suite")
    cases = {n: getattr(suite, n) for n in dir(suite) if n.startswith("test_")}
    modules = list(suite_modules())
    place = {n: (modules.index(module_of(c)), line_of(c)) for n, c in cases.items()}
    parts = [f"---\ntitle: {KINDS[kind]}\n---", f"# {KINDS[kind]}: what is proved", f"{len(cases)} cases."]
    group = ""
    for name in sorted(cases, key=place.get):
        case = cases[name]
        if _group(case) != group:
            group = _group(case)
            parts += [f"## {group}", "| case | needs | |\n|---|---|---|"]
        needs = [str(c) for mark in getattr(case, "pytestmark", ()) if mark.name == "requires" for c in mark.args]
        link = f'<a href="source/{module_of(case)}.html#__codelineno-0-{line_of(case)}">source</a>'
        text = inline((case.__doc__ or "").split("\n\n")[0])
        row = f"| **{_sentence(name)}**{'<br>' if text else ''}{text} | {' '.join(f'`{n}`' for n in needs)} | {link} |"
        parts[-1] += "\n" + row
    return "\n\n".join(parts) + "\n"


def module_of(case):
    """Return the name of a case's module, as in `suite_modules`."""
    return case.__module__.removeprefix("transom_conformance.")


def line_of(case):
    """Return the line in which a case begins."""
    return inspect.unwrap(case).__code__.co_firstlineno


# Contracts


def driver_page():
    """Describe what every driver has."""
    import transom.contract as module

    parts = ["# Every driver", prose(module.__doc__)]
    parts.append("## Operations of every kind")
    parts += [operation_text(name, method) for name, method in operations(module.Driver).items()]
    return "\n\n".join(parts) + "\n"


def contract_page(kind):
    """Describe one contract: its text, its operations, its capabilities and the data they speak of."""
    from transom.drivers import contract_of

    contract = contract_of(kind)
    module = inspect.getmodule(contract)
    title = f"{KINDS[kind]}: the contract"
    parts = [f"---\ntitle: {KINDS[kind]}\n---", f"# {title}", prose(module.__doc__)]
    parts.append("## Operations")
    parts.append(
        f"`{module.__name__}.{contract.__name__}` has, besides those of [every driver](driver.md), these operations."
        " All are called with keyword arguments."
    )
    inherited = operations(contract.__mro__[1])
    parts += [operation_text(n, m) for n, m in operations(contract).items() if m is not inherited.get(n)]
    parts += helper_classes(module)
    capability = next(c for c in classes(module) if c.__name__.endswith("Capability"))
    parts.append("## Capabilities")
    parts.append(capability_table(capability))
    structs = [c for c in classes(module) if issubclass(c, msgspec.Struct)]
    enums = [c for c in classes(module) if hasattr(c, "__members__") and c is not capability]
    parts.append("## Data")
    parts += [struct_text(c) for c in structs] + [enum_text(c) for c in enums]
    return "\n\n".join(parts) + "\n"


def operations(contract):
    """Return the operations in the order of the source."""
    from transom.drivers import operations_of

    found = operations_of(contract)
    return dict(sorted(found.items(), key=lambda item: (item[1].__module__, item[1].__code__.co_firstlineno)))


def signature(name, method):
    """Write an operation down as its author sees it, `self` left out; annotations as in the source."""
    found = inspect.signature(method)
    parameters = [p for p in found.parameters.values() if p.name != "self"]
    short = f"{name}{found.replace(parameters=parameters)}".replace("'", "")
    if len(short) <= 90:
        return short
    lines = "".join(f"    {p},\n" for p in parameters).replace("'", "")
    return f"{name}(\n{lines}) -> {found.return_annotation}".replace("'", "")


def operation_text(name, method):
    """Describe one operation."""
    mark = method.__transom_operation__
    if getattr(method, "__isabstractmethod__", False):
        rule = "Every driver implements it."
    elif mark.needs is not None:
        rule = f"For drivers that declare `{mark.needs}`; others raise `NotSupported`, as the inherited body does."
    else:
        rule = "A driver may implement it; the inherited body is a default."
    heading = f"### `{name}` {{ #{name} }}\n\n```python\n{signature(name, method)}\n```"
    return f"{heading}\n\n*{rule}*\n\n{prose(method.__doc__)}"


def helper_classes(module):
    """Describe the abstract classes that operations return: a log's writer, a watch."""
    from transom.contract import Driver

    parts = []
    for cls in classes(module):
        if inspect.isabstract(cls) and not issubclass(cls, Driver):
            parts.append(f"## {cls.__name__}\n\n{prose(cls.__doc__)}")
            for name, method in vars(cls).items():
                if inspect.isfunction(method) and not name.startswith("_"):
                    text = f"```python\n{signature(name, method)}\n```\n\n{prose(method.__doc__)}"
                    parts.append(f"### `{cls.__name__}.{name}` {{ #{cls.__name__.lower()}-{name} }}\n\n{text}")
    return parts


def classes(module):
    """Return the classes that the module defines, in its order."""
    return [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]


def capability_table(cls):
    """List the words with the text under each in the source."""
    texts = attribute_texts(cls)
    rows = [f"| `{member.value}` | {inline(texts.get(name, ''))} |" for name, member in cls.__members__.items()]
    return "| capability | what a driver that declares it does |\n|---|---|\n" + "\n".join(rows)


def enum_text(cls):
    """Describe an enum."""
    texts = attribute_texts(cls)
    rows = [f"| `{m.name}` | `{m.value}` | {inline(texts.get(m.name, ''))} |" for m in cls.__members__.values()]
    return f"### {cls.__name__}\n\n{prose(cls.__doc__)}\n\n| name | value | |\n|---|---|---|\n" + "\n".join(rows)


def struct_text(cls):
    """Describe a structure: its fields as in the source, and its text."""
    fields = []
    for name, kind in inspect.get_annotations(cls).items():
        default = next(f for f in msgspec.structs.fields(cls) if f.name == name)
        value = "" if default.required else f" = {default_text(default)}"
        fields.append(f"{name}: {kind}{value}")
    return f"### {cls.__name__}\n\n```python\n" + "\n".join(fields) + f"\n```\n\n{prose(cls.__doc__)}"


def default_text(field):
    """Write a default down."""
    if field.default is not msgspec.NODEFAULT:
        return repr(field.default)
    made = field.default_factory()
    return repr(made)


def attribute_texts(cls):
    """Return the text that stands under each attribute in the source of a class."""
    import ast

    tree = ast.parse(inspect.getsource(cls)).body[0]
    texts = {}
    for first, second in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(first, ast.Assign) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
            texts[first.targets[0].id] = str(second.value.value)
    return texts


# Text


def inline(text):
    """Make one line of a docstring, in Markdown."""
    return " ".join(markup(text).split()).replace("|", "\\|")


def markup(text):
    """Turn ``double`` back quotes into single ones; the names in single ones are code already."""
    return text.replace("``", "`")


def prose(text):
    """Turn a docstring into Markdown: headings of lists, indented blocks, definition lists, Args and Raises."""
    lines = inspect.cleandoc(text or "").splitlines()
    out, index = [], 0
    while index < len(lines):
        line = lines[index]
        block, after = _indented(lines, index + 1)
        if line.endswith("::"):
            lead = line[:-1] if line != "::" else ""
            out += ["", markup(lead), "", "```" + _language(block), *block, "```", ""]
            index = after
        elif line in ("Args:", "Raises:", "Returns:", "Attributes:"):
            out += ["", f"**{line[:-1]}**", "", *_items(block), ""]
            index = after
        elif block and line and not line.startswith(" ") and (index == 0 or not lines[index - 1]):
            out += ["", f"**{markup(line)}**", "", *_section(block), ""]
            index = after
        else:
            out.append(markup(line))
            index += 1
    return "\n".join(out).strip()


def _language(block):
    code = any(re.match(r"\s*(class|def|import|from) ", line) for line in block)
    return "python" if code else ("toml" if any(line.startswith("[") for line in block) else "text")


def _indented(lines, start):
    """Return the indented block that begins at `start`, without its indentation, and where it ends."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
        end += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return [line[4:] for line in lines[start:end]], end


def _section(block):
    """A block under a heading: either terms with their texts, or prose."""
    terms = [re.match(r"(\w+)\s{2,}(\S.*)", line) for line in block]
    if not terms or not terms[0]:
        return [markup(line) for line in block]
    items = []
    for line, term in zip(block, terms, strict=True):
        if term:
            items.append(f"- **{term[1]}**: {markup(term[2])}")
        else:
            items.append("    " + markup(line.strip()) if line.strip() else "")
    return items


def _items(block):
    """The lines of Args, Raises and Attributes: ``name: text``, continued with more indentation."""
    items = []
    for line in block:
        named = re.match(r"([\w, ]+?): (.*)", line) if not line.startswith(" ") else None
        if named:
            items.append(f"- `{named[1]}`: {markup(named[2])}")
        elif items:
            items.append("    " + markup(line.strip()))
        else:
            items.append(markup(line))
    return items


# Tables


def config_table():
    """Every key of the configuration with its meaning, type and default."""
    from transom.config import Config

    meanings = msgspec.json.decode((ROOT / "docs" / "keys.json").read_bytes())
    rows = []
    for field in msgspec.structs.fields(Config):
        if field.name not in ("origin", "ignored"):
            key = field.encode_name
            rows.append(f"| `{key}` | {meanings[key]} | {_kind(field.type)} | {_default(field)} |")
    return "| key | meaning | value | default |\n|---|---|---|---|\n" + "\n".join(rows)


def _kind(kind):
    from transom.config import _wanted

    text = _wanted(msgspec.inspect.type_info(kind))
    return re.sub(r"'([^']*)'", r"`\1`", text.replace("|", "\\|"))


def _default(field):
    value = default_text(field) if field.default is msgspec.NODEFAULT else field.default
    if value in ("", "()", "{}", None, (), 0) or isinstance(value, msgspec.Struct):
        return "" if value != 0 or isinstance(value, bool) else "0"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def ignored_table():
    """Docker's keys that mean nothing here."""
    from transom.config import IGNORED

    rows = [f"| `{key}` | {reason} |" for key, reason in sorted(IGNORED.items())]
    return "| key | why it has no effect |\n|---|---|\n" + "\n".join(rows)


def order_table():
    """What is chosen where the config names nothing."""
    from transom.config import ORDER

    rows = [
        f"| {kind} | {', '.join(f'`{name}`' for name in names)} |" for kind, names in ORDER.items() if kind != "auth"
    ]
    return "| kind | tried in this order |\n|---|---|\n" + "\n".join(rows)


def commands_table():
    """The commands, from the table that ``transom --help`` prints."""
    from transom_engine.cli import _COMMANDS

    rows = []
    for name, (module, text) in sorted(_COMMANDS.items()):
        rows.append(f"| `transom {name}` | {text}{_subcommands(name, module)} |")
    return "| command | |\n|---|---|\n" + "\n".join(rows)


def _subcommands(name, module):
    """List the commands of a group; nothing for a plain command."""
    from importlib import import_module

    command = getattr(import_module(f"transom_engine.cli.{module}"), f"{name}_command")
    names = sorted(getattr(command, "commands", {}))
    return ": " + ", ".join(f"`{sub}`" for sub in names) if names else ""


def storage_cases_table():
    """The cases of the storage suite, with the numbers that their docstrings begin with."""
    from transom_conformance.storage import StorageSuite

    rows = []
    for cls in reversed(StorageSuite.__mro__):
        for name, case in vars(cls).items():
            if name.startswith("test_"):
                numbers, text = re.fullmatch(r"([\d, ]+)[:.]\s*(.*)", inspect.getdoc(case), re.DOTALL).groups()
                sentence = name.removeprefix("test_").replace("_", " ")
                rows.append(f"| {numbers} | {sentence} | {' '.join(text.split())} |")
    return "\n".join(["| number | case | what it looks at |", "|---|---|---|", *rows])


TABLES = {
    "config": config_table,
    "ignored": ignored_table,
    "order": order_table,
    "commands": commands_table,
    "storage_cases": storage_cases_table,
}

"""The order of the house: a module imports only from modules above it, and programs only what is public."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vqstack"

# Reading order, as in docs/design.md. A file that has become a folder of the same name keeps its place.
ORDER = [
    "terminal",
    "errors",
    "precision",
    "settings",
    "registry",
    "reading",
    "paths",
    "signals",
    "threads",
    "allocator",
    "disk",
    "shards",
    "checkpoint",
    "ending",
    "output",
    "hub",
    "checks",
    "shapes",
    "nets",
    "chains",
    "texts",
    "conditions",
    "quantizer",
    "likelihood",
    "variables",
    "ledger",
    "metrics",
    "schedule",
    "window",
    "level",
    "cluster",
    "terms",
    "stack",
    "joint",
    "code_model",
    "renderer",
    "pretrained",
    "model_settings",
    "given",
    "model",
    "tokenizer",
    "editing",
    "edited",
    "code_use",
    "export",
    "images",
    "codes",
    "codec",
    "evaluation",
    "fit",
    "sources",
    "features",
    "quality",
    "plots",
    "config",
    "run_folder",
    "run_report",
    "report",
    "reuse",
    "phases",
    "publish",
    "encoder",
    "recipes",
    "in_memory",
    "library",
    "explorer",
    "commands",
    "__main__",
]
PLACE = {name: place for place, name in enumerate(ORDER)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
PROGRAMS = sorted(path for folder in ("recipes", "tools") for path in (ROOT / folder).rglob("*.py"))


def imports(source: str, package: str) -> Iterator[str]:
    """Absolute dotted names of all that ``source`` imports, at any depth, inside functions too.

    ``from a.b import c`` gives ``a.b.c``; relative imports are resolved against ``package``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def breaches(entry: str, source: str, package: str = "vqstack") -> list[str]:
    """Imports in a module of ``entry`` that break the order."""
    found = []
    for name in imports(source, package):
        first, _, rest = name.partition(".")
        if first != "vqstack" or rest == "__version__":
            continue
        target = rest.partition(".")[0]  # empty for a bare `import vqstack`
        if target != entry and PLACE.get(target, len(ORDER)) >= PLACE[entry]:
            found.append(name)
    return found


def private(source: str) -> list[str]:
    """Imports in a program that are not public modules of the package, or names in them."""
    found = []
    for name in imports(source, ""):
        first, *rest = name.split(".")
        if first in {"recipes", "tools", "tests", "benchmarks"} or not first:
            found.append(name)
        # `from vqstack import __version__` is public; anything else comes from a module of the house.
        elif first == "vqstack" and rest not in ([], ["__version__"]):
            if rest[0] not in PLACE or any(part.startswith("_") for part in rest):
                found.append(name)
    return found


def test_every_module_has_a_place():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} <= set(ORDER)


def test_modules_import_from_above_only():
    for path in MODULES:
        inside = path.relative_to(PACKAGE)
        package = ".".join(("vqstack", *inside.parts[:-1]))
        assert breaches(inside.parts[0].removesuffix(".py"), path.read_text("utf-8"), package) == [], inside


def test_programs_import_public_modules_only():
    for path in PROGRAMS:
        assert private(path.read_text("utf-8")) == [], path.name


def is_module(name: str) -> bool:
    """Whether a dotted name of the package is a module of it."""
    inside = ROOT.joinpath(*name.split("."))
    return inside.with_suffix(".py").is_file() or inside.is_dir()


def test_what_benchmarks_import_is_there():
    """No test runs them, so a name that has moved would be found when somebody measures."""
    missing = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for name in imports(path.read_text("utf-8"), ""):
            module, _, attribute = name.rpartition(".")
            if name.startswith("vqstack.") and not (is_module(name) or hasattr(import_module(module), attribute)):
                missing.append(f"{path.name}: {name}")
    assert missing == []


def bare_prints(source: str) -> list[int]:
    """Lines that print something which has not been escaped."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    printing = (".print", ".stdout.write", ".stderr.write", ".tqdm.write", ".Progress.write")
    prints = [call for call in calls if f".{ast.unparse(call.func)}".endswith(printing)]
    escaped = ("lines(", "plain(", "f'warning: {plain(")
    return [call.lineno for call in prints if not all(ast.unparse(a).startswith(escaped) for a in call.args)]


def test_only_what_is_escaped_is_printed():
    """reader.py prints to the process that started it, export/run.py counts; everything else goes to a person."""
    for path in [*MODULES, *PROGRAMS]:
        known = path.name == "reader.py" or path.parts[-2:] == ("export", "run.py")
        assert known or bare_prints(path.read_text("utf-8")) == [], path

"""Which module of charlm may import which: the walls of the house, read from the source text."""

import ast
from pathlib import Path

import pytest

import charlm

PACKAGE = Path(__file__).parent.parent / "charlm"

# Data flows from left to right; a module imports only modules to its left.
ORDER = [
    *(
        "sizes",
        "config",
        "vocab",
        "kernels",
        "reference",
        "sources",
        "textfile",
        "readers",
        "rows",
        "loading",
    ),
    *(
        "passes",
        "layout",
        "arrays",
        "floors",
        "corpus",
        "build",
        "prepared",
        "lanes",
        "gru",
        "loss",
        "casting",
        "regular",
        "model",
        "memory",
        "average",
        "adam",
        "optim",
    ),
    *(
        "metrics",
        "evaluate",
        "context",
        "dynamic",
        "stepping",
        "drawing",
        "recorded",
        "generate",
        "scoring",
        "card",
        "reduction",
        "parts",
        "checkpoint",
        "best",
        "trained",
        "push",
        "export",
        "warm",
    ),
    *("report", "stop", "state", "run", "finish", "resume", "train", "doctor", "figure", "hello", "words"),
    *("braille", "progress", "watch", "completion"),
    *("history", "marks", "detectors", "looking", "plots", "findings", "known", "tables", "page"),
]
BESIDE = {"files", "terminal"}  # imports nothing of charlm; everyone may import it
HEAVY = {"torch", "datasets", "wandb", "accelerate", "pyarrow", "numba"}
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
COMMANDS = [name for name in MODULES if name.startswith("cli_")]
ORDER += [*COMMANDS, "cli", "__main__"]


def imports_of(tree: ast.AST) -> set[str]:
    """Every imported name, dotted: 'numpy', 'charlm.vocab', 'charlm.vocab.Vocab'; relative ones resolved."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["charlm" if node.level else "", node.module or ""]))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def at_import(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions and `if TYPE_CHECKING`: what runs when it is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

        def visit_If(self, node):
            test = ast.unparse(node.test)
            return None if test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else self.generic_visit(node)

    return Strip().visit(tree)


def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def ours(name: str) -> set[str]:
    """The modules of charlm that a module imports, anywhere in it."""
    parts = [dotted.split(".") for dotted in imports_of(parsed(name)) if dotted.split(".")[0] == "charlm"]
    return {part[1] for part in parts if len(part) > 1 and part[1] in MODULES}


def test_the_package_is_there():
    assert {"__init__", "config", "vocab", "corpus"} <= set(MODULES)
    assert not [p for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()]


@pytest.mark.parametrize("name", [m for m in MODULES if m != "__init__"])
def test_a_module_has_its_place_and_imports_only_to_its_left(name):
    assert name in ORDER or name in BESIDE, f"charlm/{name}.py: give it a place in ORDER of this test"
    allowed = set() if name in BESIDE else {*ORDER[: ORDER.index(name)], *BESIDE}
    assert ours(name) <= allowed, f"charlm/{name}.py may not import {sorted(ours(name) - allowed)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_name_is_imported_from_the_module_that_holds_it(name):
    """`from charlm import Vocab` would hide which module is meant; only the version lives in the package."""
    direct = {d.split(".")[1] for d in imports_of(parsed(name)) if d.startswith("charlm.")}
    assert direct <= {*MODULES, "__version__"}


def test_the_package_itself_imports_none_of_its_modules():
    assert not [d for d in imports_of(at_import(parsed("__init__"))) if d.startswith("charlm")]


def test_type_checkers_are_told_the_names_that_load_on_first_use():
    told = imports_of(parsed("__init__")) - imports_of(at_import(parsed("__init__")))
    homes = {f"charlm.{home}.{name}" for name, home in charlm._HOME.items()}
    assert homes == {d for d in told if d.count(".") == 2}
    assert all(getattr(charlm, name) is not None for name in charlm.__all__)
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_charlm_imports_scripts_or_tests(name):
    assert not {d.split(".")[0] for d in imports_of(parsed(name))} & {"scripts", "tests"}


@pytest.mark.parametrize(
    "name",
    [m for m in ("__init__", "__main__", "cli", "config", "sources", "stop", "words") if m in MODULES]
    + COMMANDS,
)
def test_what_help_needs_imports_nothing_heavy(name):
    """`charlm --help` answers at once."""
    seen, todo = set(), [name]
    while todo:  # and what it imports when it is imported, and so on
        module = todo.pop()
        seen.add(module)
        top = imports_of(at_import(parsed(module)))
        assert not {d.split(".")[0] for d in top} & HEAVY, f"{name} imports charlm/{module}.py"
        inner = {d.split(".")[1] for d in top if d.startswith("charlm.")}
        todo += sorted((inner & set(MODULES)) - seen)


def test_the_rules_of_this_test_see_what_they_should():
    """The guards above, tried on source that breaks them."""
    bad = ast.parse(
        "import torch.nn as nn\nfrom . import train\nfrom .model import CharLM\n"
        "def f():\n    from charlm.cli import main\n    import wandb\n"
    )
    assert {"torch.nn", "charlm.train", "charlm.model", "charlm.cli", "wandb"} <= imports_of(bad)
    top = imports_of(at_import(bad))
    assert "torch.nn" in top and "wandb" not in top and "charlm.cli" not in top
    guarded = ast.parse("try:\n    import torch\nexcept ImportError:\n    pass\n")
    assert "torch" in imports_of(at_import(guarded))

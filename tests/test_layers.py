"""Seven layers, no circles, small files: read from the source.

An import stays in its folder or goes to a lower layer, so folders of one layer do not know each
other.
"""

import ast
import statistics
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "mllm_jax").rglob("*.py"))
LAYERS = {
    "__main__": 7,
    "commands": 6,
    **dict.fromkeys(("corpus", "evaluation", "preflight"), 5),
    **dict.fromkeys(("training", "generation", "conversion"), 4),
    **dict.fromkeys(("data", "models", "checkpoints"), 3),
    **dict.fromkeys(("config", "distributed", "report", "digits"), 2),
    **dict.fromkeys(("common", "batch"), 1),
    "": 0,  # the package itself: its version, and names that are imported when they are used
}
PLACES = {  # library -> where it may be imported
    "flax": ("mllm_jax/models/",),
    "orbax": ("mllm_jax/checkpoints/params.py", "mllm_jax/checkpoints/store.py"),
    "grain": ("mllm_jax/data/",),
    "pyarrow": ("mllm_jax/data/sources/tables.py",),
    "tensorflow_datasets": ("mllm_jax/data/sources/tfds.py",),
    "huggingface_hub": ("mllm_jax/data/sources/hub.py",),
    "transformers": (  # tokenizer and template only
        *("mllm_jax/data/", "mllm_jax/checkpoints/", "mllm_jax/common/tokenizer_model.py"),
    ),
    "sentencepiece": ("mllm_jax/common/tokenizer_model.py",),  # optional
    "safetensors": ("mllm_jax/checkpoints/",),
    "optax": ("mllm_jax/training/",),
    "wandb": (),  # imported by name, when a run asks for it
    "torch": (),
    "tensorflow": (),
}


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {dotted(file) for file in FILES}


def folder(module: str) -> str:
    """`mllm_jax.data.mixture.packing` -> `data`; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def _public_types(file: Path) -> set[ast.stmt]:
    """Imports that type checkers alone read, in the package's `__init__`: its public names."""
    if dotted(file) != "mllm_jax":
        return set()
    blocks = [node for node in parse(file).body if isinstance(node, ast.If)]
    return {
        line for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING" for line in node.body
    }


@cache
def imports(file: Path) -> list[tuple[str, str]]:
    """(module, "file:line") of all imports; `from mllm_jax.data import loader` is the module."""
    found = []
    types_alone = _public_types(file)
    for node in ast.walk(parse(file)):
        if node in types_alone:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, f"{name(file)}:{node.lineno}") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(file)}:{node.lineno}: write imports in full"
            for full in (f"{node.module}.{alias.name}" for alias in node.names):
                found.append(
                    (full if full in KNOWN else node.module, f"{name(file)}:{node.lineno}")
                )
    return found


def test_an_import_stays_in_its_folder_or_goes_to_a_lower_layer():
    assert {folder(module) for module in KNOWN} == LAYERS.keys()
    wrong = [
        f"{place}: {here} imports {target}"
        for file in FILES
        for target, place in imports(file)
        if target in KNOWN
        and (here := folder(dotted(file))) != folder(target)
        and LAYERS[here] <= LAYERS[folder(target)]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_root_holds_at_most_four_files():
    assert len(list((ROOT / "mllm_jax").glob("*.py"))) <= 4


def test_no_circles():
    graph = {dotted(file): {target for target, _ in imports(file)} & KNOWN for file in FILES}
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> None:
        assert node not in path, " -> ".join((*path[path.index(node) :], node))
        if node not in done:
            for target in graph[node]:
                visit(target, (*path, node))
            done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("library", PLACES)
def test_a_library_stays_in_its_place(library: str):
    wrong = [
        f"{where}: imports {target}"
        for file in FILES
        for target, where in imports(file)
        if target.split(".")[0] == library and not name(file).startswith(PLACES[library])
    ]
    assert not wrong, "\n".join(wrong)


def _private(attribute: str) -> bool:
    return attribute.startswith("_") and not attribute.startswith("__")


def test_nobody_reaches_into_another_file():
    wrong = []
    for file in FILES:
        modules = {target.rsplit(".", 1)[-1] for target, _ in imports(file) if target in KNOWN}
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mllm_jax"):
                wrong += [(name(file), node.lineno, a.name) for a in node.names if _private(a.name)]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules and _private(node.attr):
                    wrong.append((name(file), node.lineno, ast.unparse(node)))
    assert not wrong


def test_files_and_functions_are_small():
    sizes = {name(file): file.read_text(encoding="utf-8").count("\n") for file in FILES}
    assert not {file: lines for file, lines in sizes.items() if lines > 400}
    long = {file: lines for file, lines in sizes.items() if lines >= 300}
    assert len(long) <= len(sizes) / 10, long
    assert statistics.median(lines for lines in sizes.values() if lines > 1) <= 180
    functions = {
        f"{name(file)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {function: lines for function, lines in functions.items() if lines > 70}


def test_nothing_is_swallowed_and_no_debugger_is_left():
    wrong = []
    for file in FILES:
        for node in ast.walk(parse(file)):
            where = f"{name(file)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                kinds = ast.unparse(node.type) if node.type else "everything"
                if {"everything", "Exception", "BaseException"} & set(
                    kinds.strip("()").split(", ")
                ):
                    wrong.append(f"{where}: catches {kinds}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "breakpoint":
                wrong.append(f"{where}: breakpoint()")
    assert not wrong, "\n".join(wrong)


def test_every_file_says_what_it_is_for():
    assert not [name(f) for f in FILES if parse(f).body and not ast.get_docstring(parse(f))]


def test_the_wheel_carries_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {dotted(file.parent / "__init__.py") for file in FILES}
    assert {dotted(file) for file in FILES if file.name == "__init__.py"} == folders
    assert set(settings["tool"]["setuptools"]["packages"]) == folders | {"mllm_jax.configs"}

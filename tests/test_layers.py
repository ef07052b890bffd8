"""The imports of the package follow the table of layers, and importing it loads nothing heavy."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "hap2s_jax"

# Longest matching prefix decides. The commands come last and may import everything.
LAYERS = {
    "hap2s_jax": 0,
    "hap2s_jax.errors": 0,
    "hap2s_jax.settings": 0,
    "hap2s_jax.formats": 0,
    "hap2s_jax.extras": 0,
    "hap2s_jax.distances": 0,
    "hap2s_jax.losses": 0,
    "hap2s_jax.data": 0,
    "hap2s_jax.evaluation": 0,
    "hap2s_jax.reporting": 0,
    "hap2s_jax.models": 1,
    "hap2s_jax.distributed": 1,
    "hap2s_jax.data.augment": 1,
    "hap2s_jax.data.auto_augment": 1,
    "hap2s_jax.data.batches": 1,
    "hap2s_jax.data.datasets": 1,
    "hap2s_jax.distributed.experimental": 0,
    "hap2s_jax.distributed.signals": 0,
    "hap2s_jax.cli": 1,
    "hap2s_jax.data.tf": 1,
    "hap2s_jax.data.builders": 1,
    "hap2s_jax.training": 2,
    "hap2s_jax.evaluation.embed": 2,
    "hap2s_jax.training.loop": 3,
    "hap2s_jax.run": 4,
    "hap2s_jax.recipes": 4,
    "hap2s_jax.serving": 4,
    "hap2s_jax.catalogue": 4,
}
COMMANDS = 5

# Which modules may import what, at all or at module level. The standard library is free.
BASE = {"jax", "numpy"}
ROOMS = {
    "tensorflow": ("hap2s_jax.data.tf", "hap2s_jax.data.builders"),
    "tensorflow_datasets": ("hap2s_jax.data.tf", "hap2s_jax.data.builders"),
    "orbax": ("hap2s_jax.training.checkpoint", "hap2s_jax.training.arrays"),
    "flax": ("hap2s_jax.models", "hap2s_jax.training"),
    "optax": ("hap2s_jax.training", "hap2s_jax.run"),
    "ml_collections": ("hap2s_jax.run", "hap2s_jax.recipes"),
}
# Inside functions only, so that the module itself can be imported without them.
INSIDE_FUNCTIONS = {
    "hap2s_jax.reporting": {
        "matplotlib",
        "PIL",
        "google",  # protobuf, and the client of buckets
        "tensorboardX",
        "threadpoolctl",
        "tqdm",
        "rich",
        "sklearn",
    },
    "hap2s_jax.data.places": {"etils", "fsspec"},
    "hap2s_jax.data.bucket": {"google", "requests"},
    "hap2s_jax.data.opencv": {"cv2"},
    "hap2s_jax.data.headers": {"PIL"},
    "hap2s_jax.data.emoji": {"PIL"},  # for the pixel baseline
    "hap2s_jax.data.readers": {"h5py", "scipy", "pyarrow"},  # MATLAB files; columns of sets of the hub
}


_EXACT = (["distances"], ["losses"], ["evaluation"])
_PRODUCTS = ("matmul", "einsum", "dot", "vdot", "inner", "tensordot", "dot_general")


def _name(path: pathlib.Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def _is_at(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _layer(module: str) -> int:
    rooms = [room for room in LAYERS if _is_at(module, room) and (room != "hap2s_jax" or module == room)]
    return LAYERS[max(rooms, key=len)] if rooms else COMMANDS


def _imports(path: pathlib.Path) -> list[tuple[str, bool]]:
    """(absolute name, whether at module level) of everything imported, the names of `from` included."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only a type checker reads is not imported
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, id(node) not in inside) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                found.append((whole if whole in MODULES else str(node.module), id(node) not in inside))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_short(module):
    """At most 300 lines, and 60 without its docstring."""
    text = MODULES[module].read_text()
    assert text.count("\n") <= 300, f"{module} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            assert lines <= 60, f"{module}: {node.name} has {lines} lines"


def test_the_table_for_contributors_is_that_of_the_layers():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    stated = {}
    for layer, rooms in re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE):
        for room in re.findall(r"`([^`]+)`", rooms):
            stated["hap2s_jax." + room.rstrip("/").replace("/", ".")] = int(layer)
    commands = {room for room, layer in stated.items() if layer == COMMANDS}
    assert {room: layer for room, layer in stated.items() if room not in commands} == {
        room: layer for room, layer in LAYERS.items() if room != "hap2s_jax"
    }
    assert commands <= {module for module in MODULES if _layer(module) == COMMANDS}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    for imported, _ in _imports(MODULES[module]):
        if imported.startswith("hap2s_jax"):
            assert _layer(imported) <= _layer(module), f"{module} (layer {_layer(module)}) imports {imported}"
            assert _layer(imported) < COMMANDS or _layer(module) == COMMANDS


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module):
    for imported, at_module_level in _imports(MODULES[module]):
        top = imported.split(".")[0]
        if top in ROOMS:
            assert any(_is_at(module, room) for room in ROOMS[top]), f"{module} imports {top}"
        elif _layer(module) == 0 and top not in sys.stdlib_module_names | BASE | {"hap2s_jax"}:
            allowed = {lib for room, libs in INSIDE_FUNCTIONS.items() if _is_at(module, room) for lib in libs}
            assert top in allowed, f"{module} (layer 0) imports {top}"
            assert not at_module_level, f"{module} imports {top} at module level; do it inside the function"


@pytest.mark.parametrize("module", MODULES)
def test_pmap_and_distributed_live_in_one_module(module):
    if module == "hap2s_jax.distributed.devices":
        return
    text = MODULES[module].read_text()
    uses = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in ("pmap", "distributed")
        if isinstance(node.value, ast.Name) and node.value.id == "jax"
    ]
    assert not uses, f"{module}:{uses[0].lineno} uses jax.{uses[0].attr}"


def test_one_module_imports_what_jax_may_move_with_any_release():
    edge = "hap2s_jax.distributed.experimental"
    others = [
        m
        for m in MODULES
        if m != edge and any("jax.experimental" in name for name, _ in _imports(MODULES[m]))
    ]
    assert not others
    functions = [
        node for node in ast.parse(MODULES[edge].read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    for function in functions:
        assert "Remove when" in (ast.get_docstring(function) or ""), f"{function.name}: until when?"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[1:2] in _EXACT])
def test_products_of_losses_and_metrics_say_how_exact_they_are(module):
    """The default is TF32 on NVIDIA and bfloat16 on TPU, which no CPU test would see."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _PRODUCTS
        ):
            of_numpy = isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
            said = any(keyword.arg == "precision" for keyword in node.keywords)
            assert of_numpy or said, f"{module}:{node.lineno}: give precision="
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            assert module == "hap2s_jax.evaluation.statistics", (
                f"{module}:{node.lineno}: @ cannot say precision="
            )


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_package_loads_jax_and_numpy_only():
    loaded = _loaded_after("import hap2s_jax")
    assert not loaded & {
        "tensorflow",
        "flax",
        "optax",
        "orbax",
        "ml_collections",
        "matplotlib",
        "absl",
        "torch",
    }


def test_training_and_evaluation_need_no_tensorflow():
    loaded = _loaded_after(
        "import hap2s_jax.losses, hap2s_jax.models, hap2s_jax.distributed.devices, hap2s_jax.evaluation.protocols, "
        "hap2s_jax.evaluation.embed, hap2s_jax.training.step, hap2s_jax.training.loop, hap2s_jax.training.optimizer"
    )
    assert not loaded & {
        "tensorflow",
        "tensorflow_datasets",
        "orbax",
        "ml_collections",
        "matplotlib",
        "torch",
    }


def test_tensorflow_loads_without_keras():
    """Half of the seconds of its import; the environment is left as it was."""
    loaded = _loaded_after(
        "from hap2s_jax.data.tf.quiet import tf; import os; assert 'TF_USE_LEGACY_KERAS' not in os.environ"
    )
    assert "tensorflow" in loaded
    assert "keras" not in loaded

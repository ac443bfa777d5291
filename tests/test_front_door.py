"""What a user imports, what ``conf/`` names and where the files lie say the same.

Run as a script, this file prints the public names and their signatures, as ``front_door.txt`` freezes them.
"""

import ast
import difflib
import enum
import importlib
import inspect
import re
import statistics
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_optim"
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
FROZEN = Path(__file__).with_name("front_door.txt")
LINE = re.compile(r"from \.([\w.]+) import (\w+) as \2")
# What stands in a family's folder and is none of its algorithms: nobody names it in a configuration.
PARTS = {"base", "functional", "__init__"}


def package_of(folder):
    return ".".join(folder.relative_to(ROOT).parts)


def door(stub):
    """Public name -> the file that it comes from, relative to the package."""
    return {name: module for module, name in LINE.findall(stub.read_text())}


def front_names():
    return [f"{package_of(stub.parent)}.{name}" for stub in STUBS for name in door(stub)]


def public_names():
    """Each public name with its signature; of a class, with those of its public methods."""
    lines = []
    for stub in STUBS:
        package = importlib.import_module(package_of(stub.parent))
        lines += [line for name in sorted(door(stub)) for line in described(package, name)]
    functional = importlib.import_module("lightning_optim.functional")
    return lines + [line for name in functional.__all__ for line in described(functional, name)]


def signature_of(value):
    """Parameters of what is ours; what Python makes of enums and aliases of types differs between its versions."""
    if isinstance(value, enum.EnumMeta):
        return f"({', '.join(value.__members__)})"
    if isinstance(value, types.GenericAlias):
        return ""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))  # of a function that is a default
    except ValueError:  # an exception of builtins or the name of a type has none
        return ""


def described(owner, name):
    value, shown = getattr(owner, name), f"{owner.__name__}.{name}"
    if not inspect.isclass(value):
        return [f"{shown}{signature_of(value)}" if callable(value) else shown]
    lines = [f"{shown}{signature_of(value)}"]
    # Hooks of a callback are Lightning's; those of a class of ours alone are its interface.
    own = [kind for kind in value.__mro__ if kind.__module__.startswith("lightning_optim.")]
    inherited = {key for kind in value.__mro__ if kind not in own for key in vars(kind)}
    for key in sorted({key for kind in own for key in vars(kind)} - inherited):
        member = inspect.getattr_static(value, key)
        if key.startswith("_") or not isinstance(member, (property, staticmethod, classmethod, type(described))):
            continue
        signature = "" if isinstance(member, property) else signature_of(getattr(value, key))
        lines.append(f"{shown}.{key}{signature}")
    return lines


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: package_of(stub.parent))
def test_a_stub_holds_one_sorted_line_for_each_name(stub):
    lines = [line for line in stub.read_text().splitlines() if line and not line.startswith("__version__")]
    assert lines == sorted(lines)
    assert all(LINE.fullmatch(line) for line in lines)


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: package_of(stub.parent))
def test_no_public_name_is_that_of_a_file_or_folder(stub):
    # Hydra would find the function where it wants the module.
    assert not door(stub).keys() & {path.stem for path in stub.parent.iterdir()}


@pytest.mark.parametrize("name", front_names())
def test_what_the_door_names_is_there(name):
    package, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(package), attribute) is not None


def test_each_algorithm_of_a_family_has_its_line():
    """A family is a folder with a ``base.py`` that ``conf/`` offers options of."""
    missing = []
    for base in sorted(PACKAGE.rglob("base.py")):
        family, package = base.parent, PACKAGE / base.relative_to(PACKAGE).parts[0]
        if not (ROOT / "conf" / "lightning_optim" / family.relative_to(PACKAGE)).is_dir():
            continue
        offered = door(package / "__init__.pyi").values()
        for path in sorted(family.glob("*.py")):
            module = ".".join(path.relative_to(package).with_suffix("").parts)
            names = [name for name in final_classes(path) if (conf_of(path).is_file())]
            if path.stem not in PARTS and names and module not in offered:
                missing.append(f"{package_of(package)}/__init__.pyi: from .{module} import {names[0]} as {names[0]}")
    assert not missing, "add\n" + "\n".join(missing)


def conf_of(path):
    return ROOT / "conf" / "lightning_optim" / path.relative_to(PACKAGE).with_suffix(".yaml")


def final_classes(path):
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if any("final" in ast.unparse(mark) for mark in node.decorator_list)]


def targets():
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        for target in re.findall(r"_target_: *(lightning_optim[\w.]+)", path.read_text()):
            yield pytest.param(path, target, id=f"{path.relative_to(ROOT / 'conf')}:{target.rpartition('.')[2]}")


@pytest.mark.parametrize(("path", "target"), list(targets()))
def test_a_target_names_the_front_door(path, target):
    assert target in front_names()


def test_the_own_target_of_a_leaf_lies_at_the_leafs_own_path():
    """One path in three trees: a leaf of a family whose code is a folder of files has a file of its name."""
    for path in sorted((ROOT / "conf" / "lightning_optim").rglob("*.yaml")):
        own = re.search(r"^_target_: *lightning_optim\.(\w+)\.(\w+)", path.read_text(), re.MULTILINE)
        family = PACKAGE / path.parent.relative_to(ROOT / "conf" / "lightning_optim")
        if own and (family / "base.py").is_file():
            module = door(PACKAGE / own[1] / "__init__.pyi")[own[2]]
            assert PACKAGE / own[1] / f"{module.replace('.', '/')}.py" == family / f"{path.stem}.py", path


IMPORT = re.compile(r"^\s*(?:>>> )?from (lightning_optim\.[\w.]+) import (\([^)]*\)|[^\n(]+)$", re.MULTILINE)
# Benchmarks of the simulation's or the cache's own parts, which nobody else needs.
TAKE_APART = {"quantization_step.py", "quantization_speed.py", "distillation_cache.py"}


def imports_of(path):
    """Each name that a file imports from the package, and where from."""
    for module, names in IMPORT.findall(path.read_text()):
        for name in re.findall(r"\w+(?= as |,|\s*\)|\s*$|\n)", names.strip("()")):
            yield module, name


def public_homes():
    """Public name in the file that it comes from -> the package that offers it."""
    return {
        (f"{package_of(stub.parent)}.{module}", name): package_of(stub.parent)
        for stub in STUBS
        for name, module in door(stub).items()
    }


def test_readme_and_benchmarks_import_from_the_front_door():
    deeper = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in [ROOT / "README.md", *sorted((ROOT / "benchmarks").glob("*.py"))]
        for module, name in imports_of(path)
        if module.count(".") > 1 and path.name not in TAKE_APART
    ]
    assert not deeper, "\n".join(deeper)


def test_tests_and_examples_import_public_names_from_the_front_door():
    """But for the test, or the docstring, of a file itself."""
    homes = public_homes()
    deeper = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        own = ".".join(path.relative_to(ROOT / "tests").with_suffix("").parts).replace("test_", "")
        deeper += [
            f"{path.relative_to(ROOT)}: from {homes[module, name]} import {name}"
            for module, name in imports_of(path)
            if (module, name) in homes and module != f"lightning_optim.{own}"
        ]
    for path in sorted(PACKAGE.rglob("*.py")):
        examples = re.findall(r">>> from (lightning_optim[\w.]+) import (\w+)", path.read_text())
        deeper += [
            f"{path.relative_to(ROOT)}: from {homes[each]} import {each[1]}" for each in examples if each in homes
        ]
    assert not deeper, "\n".join(deeper)


def fresh(code):
    """What a new interpreter prints, in which nothing has been imported."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize(
    "package", [package_of(path.parent) for path in sorted(PACKAGE.rglob("__init__.py")) if "_hydra" not in path.parts]
)
def test_importing_a_package_imports_no_torch(package):
    assert fresh(
        f"import {package}, sys; print({{'torch', 'lightning', 'numpy'}} & sys.modules.keys() or 'light')"
    ) == ["light"]


def test_hydra_applications_hardly_notice_the_package():
    code = "import hydra, time; t = time.process_time(); import lightning_optim; print(time.process_time() - t)"
    assert statistics.median(float(fresh(code)[0]) for _ in range(20)) <= 0.03


def test_an_unknown_name_says_what_there_is():
    package = importlib.import_module("lightning_optim")
    with pytest.raises(AttributeError, match="it offers BatchMixer, DistillationTeacher"):
        _ = package.PruningSchedulerr


def test_public_names_and_signatures_are_as_frozen():
    changes = list(difflib.unified_diff(FROZEN.read_text().splitlines(), public_names(), lineterm="", n=0))
    assert not changes, "if this is meant, run `python tests/test_front_door.py > tests/front_door.txt`:\n" + "\n".join(
        changes
    )


if __name__ == "__main__":
    print("\n".join(public_names()))

"""What a user imports, what ``conf/`` names and where the files lie say the same."""

import ast
import importlib
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_optim"
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
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
    with pytest.raises(AttributeError, match="it offers DistillationTeacher, NASSupernet"):
        _ = package.PruningSchedulerr

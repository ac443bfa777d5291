"""Each leaf of ``conf/`` says all that its target can be told, and says what it means."""

import inspect
import re

import hydra.utils
import pytest
from omegaconf import OmegaConf


def pytest_generate_tests(metafunc):
    if "leaf" in metafunc.fixturenames:
        kit = next(plugin for plugin in metafunc.config.pluginmanager.get_plugins() if hasattr(plugin, "Kit")).Kit
        found = kit.leaves()
        metafunc.parametrize("leaf", found, ids=[str(path.relative_to(kit.CONF)) for path in found])


def node_of(leaf):
    config = OmegaConf.load(leaf)
    return config if "_target_" in config else config[leaf.stem]


def keywords(target):
    found = inspect.signature(hydra.utils.get_object(target)).parameters.values()
    return {entry.name for entry in found if entry.kind in (entry.KEYWORD_ONLY, entry.POSITIONAL_OR_KEYWORD)}


def test_keys_are_the_keywords_of_the_target(leaf, kit):
    node = node_of(leaf)
    given = {key for key in node if not key.startswith("_")} - {"defaults"}
    config = OmegaConf.load(leaf)
    pulled = [
        key.split("@")[1].split(".") for entry in config.get("defaults", []) if entry != "_self_" for key in entry
    ]
    # `losses.soft_target` is an entry of `losses`; what is no callback pulls its families into itself
    is_callback = leaf.parent.name == "callbacks"
    assert given | {path[is_callback] for path in pulled if path[0] == leaf.stem or not is_callback} == keywords(
        node["_target_"]
    )


def test_first_line_says_what_it_is_and_every_key_what_it_takes(leaf):
    lines = leaf.read_text().splitlines()
    assert re.match(r"# \S.*[.]$", lines[0]), "the first line is a comment, a sentence"
    body = lines[lines.index("") :] if "defaults:" in lines else lines
    for line in body:
        is_value = re.match(r"\s*[a-z]\w*: *[^ #]", line)
        assert not is_value or " # " in line, f"{line!r} lacks its unit or range"


def test_every_family_has_a_place(kit):
    families = {str(path.parent.relative_to(kit.CONF)) for path in kit.leaves()} - {"callbacks"} - kit.ELSEWHERE
    assert families == set(kit.slots())


@pytest.mark.every_leaf
def test_every_leaf_makes_its_callback(case):
    assert type(case.make()).__name__.lower() == case.callback.replace("_", "")

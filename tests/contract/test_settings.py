"""Law: a keyword of a callback or of a setting refuses a value of another type where the object is built."""

import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from lightning_optim import (
    BatchMixer,
    DistillationTeacher,
    DropoutScheduler,
    NASSupernet,
    PenaltyRegularizer,
    PruningScheduler,
    QATFakeQuant,
    SharpnessAware,
)
from lightning_optim.quantization import LayerQuantizers

from .conftest import CONF, leaves

ELSEWHERE = {"demo", "recipe", "report"}  # of the command line


class Odd:
    """A value of no type that a setting could take."""


def kinds():
    """Every class that a file of ``conf/`` describes, and those that are built in Python alone."""
    targets = {str(OmegaConf.load(path)._target_) for path in leaves() if "_target_" in OmegaConf.load(path)}
    nodes = [OmegaConf.load(path) for path in sorted((CONF / "callbacks").glob("*.yaml"))]
    targets |= {
        str(value._target_)
        for node in nodes
        for value in node.values()
        if OmegaConf.is_dict(value) and "_target_" in value
    }
    ours = {name for name in targets if name.startswith("lightning_optim.") and name.split(".")[1] not in ELSEWHERE}
    callbacks = [PruningScheduler, QATFakeQuant, DistillationTeacher, NASSupernet, PenaltyRegularizer, BatchMixer]
    callbacks += [DropoutScheduler, SharpnessAware]
    found = {*map(get_object, ours), *callbacks, LayerQuantizers}
    return sorted(found, key=lambda kind: (kind.__name__, kind.__module__))  # two kinds may have one name


def keywords():
    for kind in kinds():
        hints = get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
        for name in inspect.signature(kind).parameters:
            if hints[name] is not Any:
                yield pytest.param(kind, name, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "keyword"), list(keywords()))
def test_a_keyword_refuses_a_value_of_another_type(kind, keyword):
    for value in (Odd(), Odd, {"key": Odd()}, [Odd()]):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}: {keyword}(\[.*\])? must be .*, got ") as raised:
            kind(**{keyword: value})
        assert "Odd" in str(raised.value) or "list" in str(raised.value) or "dict" in str(raised.value)

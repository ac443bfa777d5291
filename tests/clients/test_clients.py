"""Every client that is installed for it takes every callback by configuration, or is told why not."""

import re
from pathlib import Path

import pytest

from clients.cell import cells_of
from clients.projects import lightning_demos
from clients.run import CALLBACKS, PROJECTS, run
from clients.table import Row, written

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
TOLD = ("works", "refused", "not installed")


def cells(text):
    """Cells of a table by client, without the column of names."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in lines[2:]}


def test_the_table_of_the_docs_tells_of_every_project_and_has_no_silent_cell():
    told = cells(TABLE.read_text())
    notes = set(re.findall(r"^(\d+)\. ", TABLE.read_text(), flags=re.MULTILINE))
    assert len(told) >= len(PROJECTS)
    for name, row in told.items():
        assert len(row) == len(CALLBACKS), name
        assert all(cell.startswith(TOLD) for cell in row), name
        assert {number for cell in row for number in re.findall(r"\((\d+)\)$", cell)} <= notes


def test_what_is_said_twice_is_one_note():
    one = dict.fromkeys(CALLBACKS, ("works", "50% zeros; it warns: a layer stays"))
    other = dict.fromkeys(CALLBACKS, ("refused", "a layer stays"))
    text = written([Row("darts", "A", {"darts": "1.0"}, one), Row("darts", "B", {}, other)])
    assert cells(text) == {"darts: A": ["works: 50% zeros (1)"] * 5, "darts: B": ["refused (1)"] * 5}
    assert text.rstrip().endswith("1. a layer stays")


SINGLE_LAYER = ["works", "refused", "works", "works", "refused"]  # its channels are the network's answer
DEMOS = {
    "BoringModel": SINGLE_LAYER,
    "ManualOptimBoringModel": SINGLE_LAYER,
    "LightningTransformer": ["works"] * 5,
    "LightningLSTM": SINGLE_LAYER,
}


@pytest.mark.parametrize("network", lightning_demos.CLIENTS)
def test_lightnings_demos_take_what_they_can_take(network, tmp_path):
    found = list(cells_of(lightning_demos.CLIENTS[network], lightning_demos.DOOR, tmp_path))
    assert [cell.callback for cell in found] == list(CALLBACKS)
    assert [cell.kind for cell in found] == DEMOS[network], found


def test_lightnings_mnist_demo():
    pytest.importorskip("torchvision", reason="the demo needs torchvision, which does not import beside this torch")


@pytest.mark.clients
@pytest.mark.parametrize("project", PROJECTS)
def test_no_cell_is_silent(project, tmp_path):
    for row in run([project], tmp_path, keep="no"):
        assert all(kind in TOLD for kind, _ in row.cells.values()), row

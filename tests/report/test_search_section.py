import pytest

from lightning_optim.errors import ArtefactError
from lightning_optim.report import SearchFindings
from lightning_optim.report.search_findings import Found
from lightning_optim.report.search_section import render_search


def findings(**changes):
    found = [
        Found(options={"net.mix:operation": kind, "net.stem:width": width}, values={"score": score, "cost": cost})
        for kind, width, score, cost in (
            ("own", "16", 0.9, 4e6),
            ("skip", "8", 0.7, 1e6),
            ("skip<", "16", 0.95, 2e6),
            ("own", "8", 0.6, 3e6),
        )
    ]
    given = {
        "num_architectures": 6,
        "decisions": {"net.mix:operation": ["own", "skip", "skip<"], "net.stem:width": ["8", "16"]},
        "measures": {
            "score": {"title": "val/accuracy", "bound": None, "mode": "max"},
            "cost": {"title": "MACs", "bound": 5e6, "mode": "min"},
        },
        "objectives": ["score"],
        "axes": ["score", "cost"],
        "own": found[0].options,
        "pick": found[2],
        "pareto": [found[1], found[2]],
        "evaluations": found,
        "effects": {"net.mix:operation": {"own": -0.1, "skip<": 0.2}, "net.stem:width": {"8": -0.1, "16": 0.1}},
        "measured": {"cost": 2e6},
    }
    return SearchFindings(**{**given, **changes})


def test_the_section_tells_the_pick_its_alternatives_and_its_cost_in_the_search_and_after_it():
    page = render_search("search", findings())
    assert "4 of 6 architectures were evaluated" in page
    assert "within MACs at most 5,000,000" in page
    assert "<tr class=deployed><td>pick</td><td>0.95</td><td>2,000,000</td>" in page
    assert "net.mix:operation=skip&lt;, net.stem:width=16" in page
    assert "<td>front</td>" in page
    assert "net.mix:operation=skip, net.stem:width=8" in page
    assert "<td>as it was</td>" in page
    assert "<td>MACs</td><td>2,000,000</td><td>2,000,000</td>" in page
    assert page.count("<svg") == 2
    assert "<skip" not in page
    assert "skip<," not in page


def test_findings_survive_as_primitives_in_a_report():
    assert SearchFindings.from_dict(findings().to_dict()) == findings()
    with pytest.raises(ArtefactError, match="no findings of a search"):
        SearchFindings.from_dict({"pick": {}})


def test_changes_name_what_the_other_lacks():
    other = Found(options={"net.stem:width": "16"}, values={"score": 0.5, "cost": 1.0})
    assert findings().changes(other) == {"net.mix:operation": "(none)"}

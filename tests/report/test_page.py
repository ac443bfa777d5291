import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from typing_extensions import override

from lightning_optim.cost import Timing
from lightning_optim.report import LossCurves, Report, StageResult, read_report, write_report
from lightning_optim.report.loss_plot import plot_losses
from lightning_optim.report.page import render_page
from lightning_optim.report.plot import plot_curves, plot_stages, plot_trade_off


def report(names=("base", "prune", "qat"), **changes):
    stages = [
        StageResult(
            name=name,
            test_accuracy=0.98 - 0.01 * index,
            validation_accuracy=0.99,
            parameters=3000 // (index + 1),
            macs=90_000,
            bytes=12_000 // (index + 1),
            latency_ms_b1=None if index == 1 else 1.0 / (index + 1),
            latency_ms_b32=None if index == 1 else 9.0 / (index + 1),
            agreement=1.0,
            file=f"{index}.onnx",
        )
        for index, name in enumerate(names)
    ]
    curves = {name: [0.5, 0.9] for name in names}
    return Report(**{"stages": stages, "parity": {"top1_agreement": 0.9996}, "curves": curves, **changes})


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    @override
    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    @override
    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    return parser.seen


def losses(**values):
    return LossCurves(batches=range(1, 4), values={"task": (1.0, 0.9, 0.8), "total": (1.0, 0.9, 0.8), **values})


LOSSES = {
    "base": losses(),
    "prune": losses(**{"distillation/soft_target": (1.0, 0.5, None), "total": (0.7, 0.6, 0.5)}),
    "qat": losses(**{"distillation/hint": (90.0, 20.0, 9.0), "total": (9.0, 2.0, 1.0)}),
}


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_each_stage_has_a_panel_of_its_losses_which_one_legend_names():
    found = texts(plot_losses(report(losses=LOSSES)))
    assert {"base", "prune", "qat"} <= set(found)
    assert found.count("training batch") == 3
    legend = ["task", "distillation/soft_target", "distillation/hint"]
    assert sorted(text for text in found if "weighted" in text) == sorted(
        [*(f"{name}, unweighted" for name in legend), "total, weighted"]
    )


def test_losses_of_a_stage_that_lie_far_apart_are_on_a_logarithmic_scale():
    found = texts(plot_losses(report(losses=LOSSES)))
    assert (found.count("loss"), found.count("loss (log scale)")) == (2, 1)
    assert {"1", "10", "50"} <= set(found)
    with_zero = texts(plot_losses(report(losses={"base": losses(**{"distillation/hint": (90.0, 1.0, 0.0)})})))
    assert "loss (log scale)" not in with_zero


def test_the_page_says_which_losses_are_weighted():
    page = render_page(report(losses=LOSSES))
    parse(page)
    assert page.count("<svg") == 4
    assert "Losses of every stage" in page
    assert "before they are multiplied by their weights" in page


@pytest.mark.parametrize("plot", [plot_trade_off, plot_stages, plot_curves, plot_losses])
def test_a_plot_is_one_svg_with_every_name_and_the_pages_ink(plot):
    svg = plot(report(losses=LOSSES))
    text = "".join(ET.fromstring(svg).itertext())
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert {"base", "qat"} <= set(re.findall(r"\w+", text))
    assert plot(report(losses=LOSSES)) == svg


def test_the_page_needs_nothing_beside_it():
    seen = parse(render_page(report()))
    assert sum(tag == "svg" for tag, _ in seen) == 3
    for tag, attributes in seen:
        assert tag not in ("script", "link", "img", "iframe")
        assert "src" not in attributes
        assert not any(value.startswith(("http", "//")) for key, value in attributes.items() if key.endswith("href"))


def timed(is_calm=True):
    return {
        name: {batch: Timing(cpu=(ms * batch,) * 3, wall=(ms * batch,) * 3, is_calm=is_calm) for batch in (1, 32)}
        for name, ms in (("base", 1.0), ("prune", 0.5), ("qat", 0.25))
    }


def test_the_headline_is_of_the_deployed_stage_with_the_spread_of_its_ratios():
    page = render_page(report(timings=timed(), model="prune", best={"speed": "prune"}, remarks=["qat lost to prune."]))
    assert "From base to prune, the deployed one of 3 stages" in page
    assert "<strong>2.0\N{MULTIPLICATION SIGN}</strong><span>faster at batch 1 (2.00 to 2.00)</span>" in page
    assert "<li>qat lost to prune.</li>" in page
    assert "Chosen by accuracy in validation" in page
    assert "<tr class=deployed><td>prune</td>" in page
    parse(page)


def test_what_was_not_decided_is_no_headline():
    page = render_page(report(timings=timed(is_calm=False)))
    assert page.count("<strong>not decided</strong>") == 2
    assert "4.0\N{MULTIPLICATION SIGN}</strong>" not in page


def test_where_no_stage_gained_the_page_says_so():
    assert "Of 3 stages, base itself is deployed" in render_page(report(model="base"))


def test_the_page_does_not_say_that_a_busy_moment_hits_all_alike():
    page = render_page(report(timings=timed()))
    assert "hits all alike" not in page
    assert "CPU time of the calling thread" in page


def test_agreement_is_not_rounded_up_to_all():
    page = render_page(report())
    assert "99.96 %" in page
    assert "<strong>100 %</strong>" in render_page(report(parity={"top1_agreement": 1.0}))
    assert "<strong>100 %</strong>" not in render_page(report(parity={"top1_agreement": 0.999999}))


def test_what_the_user_named_is_text_and_never_markup():
    evil = "<script>alert('x')</script>&$x_2$"
    page = render_page(report(names=("base", evil), title=evil, notes=[evil], artefacts={evil: evil}))
    assert "<script" not in page
    parse(page)
    assert evil in "".join(ET.fromstring(plot_stages(report(names=("base", evil)))).itertext())


def test_without_matplotlib_one_line_stands_where_the_plots_would(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_page(report())
    assert "pip install 'lightning-optim[report]'" in page
    assert "<svg" not in page


def test_a_single_stage_makes_a_page_too():
    parse(render_page(report(names=("base",), curves={})))


def test_both_files_are_written_and_read_back(tmp_path):
    whole = report()
    json_path, html_path = write_report(whole, tmp_path / "run")
    assert read_report(json_path).to_dict() == whole.to_dict()
    assert html_path.read_text(encoding="utf-8") == render_page(whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.html", "report.json"]


def test_a_network_without_classes_is_judged_by_its_error():
    page = render_page(report(parity={"relative_error": 0.0123}))
    assert "<strong>1.23 %</strong>" in page
    assert "off what was trained" in page

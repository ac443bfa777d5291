"""HTML page of a report, which needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lightning_optim.report.figure import can_plot
from lightning_optim.report.loss_plot import LOSS_LEGEND, plot_losses
from lightning_optim.report.plot import plot_curves, plot_stages, plot_trade_off
from lightning_optim.report.result import Report
from lightning_optim.report.search_section import render_search
from lightning_optim.report.table import (
    DEPLOY_HEADINGS,
    DEPLOY_LEGEND,
    HEADINGS,
    LATENCY_HEADINGS,
    LATENCY_LEGEND,
    LEGEND,
    Cell,
    deploy_rows_of,
    latency_rows_of,
    rows_of,
)
from lightning_optim.report.wording import say_bytes, say_factor, say_gain, say_percent, say_points, say_spread

_NO_PLOTS = "<section><p class='notice'>No plots: pip install 'lightning-optim[report]'</p></section>"


def render_page(report: Report) -> str:
    """Return the page: headline figures, what to deploy, the stages, plots, files, how it was measured.

    Style and plots are embedded; text follows the reader's light or dark setting. Without matplotlib, one line
    stands where the plots would.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = [_headline(report), _deploy(report), _stages(report), _latency(report), *_plots(report)]
    body += [render_search(name, findings) for name, findings in report.searches.items()]
    body += [_files(report), _notes(report)]
    return "\n".join(
        [
            "<!doctype html>",
            "<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(report.title)}</title>",
            f"<style>\n{style}</style></head>",
            f"<body><main>\n<h1>{escape(report.title)}</h1>",
            *body,
            "</main></body></html>\n",
        ]
    )


def _closeness(parity: Mapping[str, float]) -> tuple[str, str]:
    if "top1_agreement" in parity:
        return say_percent(parity["top1_agreement"]).replace(".00 %", " %"), "of answers as trained"
    return say_percent(parity["relative_error"]), "off what was trained"


def _headline(report: Report) -> str:
    base, deployed = report.base, report.deployed
    figures = [
        (say_factor(base.bytes, deployed.bytes), "smaller file"),
        _speedup(report, 32, base.latency_ms_b32, deployed.latency_ms_b32),
        _speedup(report, 1, base.latency_ms_b1, deployed.latency_ms_b1),
        (say_points(base.test_accuracy, deployed.test_accuracy), "points of test accuracy"),
        _closeness(report.parity),
    ]
    cards = [
        f"<div class='figure'><strong>{escape(value)}</strong><span>{escape(label)}</span></div>"
        for value, label in figures
        if value
    ]
    accuracy = f"{say_percent(base.test_accuracy)} to {say_percent(deployed.test_accuracy)} on the test set"
    size = f"{say_bytes(base.bytes)} to {say_bytes(deployed.bytes)}"
    lead = f"From {base.name} to {deployed.name}, the deployed one of {len(report.stages)} stages: {accuracy}, {size}."
    if deployed == base and len(report.stages) > 1:
        lead = f"Of {len(report.stages)} stages, {base.name} itself is deployed: no other serves better, see below."
    return f"<p class='lead'>{escape(lead)}</p>\n<div class='figures'>{''.join(cards)}</div>"


def _speedup(report: Report, batch: int, base: float | None, deployed: float | None) -> tuple[str, str]:
    spread = report.speedup(report.deployed, batch)
    if spread is None:
        return say_factor(base, deployed), f"faster at batch {batch}"
    if not spread.is_decided:
        return "not decided", f"how much faster at batch {batch}: {say_spread(spread)}"
    return say_gain(spread.median), f"faster at batch {batch} ({say_spread(spread)})"


def _deploy(report: Report) -> str:
    if not report.best and not report.remarks:
        return ""
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in report.remarks)
    table = _table(DEPLOY_HEADINGS, deploy_rows_of(report), kind="deploy") if report.best else ""
    table += f"<p class='caption'>{DEPLOY_LEGEND}</p>" if report.best else ""
    return (
        f"<section><h2>What to deploy on this machine</h2>{table}{f'<ul>{remarks}</ul>' if remarks else ''}</section>"
    )


def _stages(report: Report) -> str:
    names = [stage.name for stage in report.stages]
    table = _table(HEADINGS, rows_of(report), kind="stages", bold=names.index(report.deployed.name))
    return f"<section><h2>Stage by stage</h2>{table}<p class='caption'>{LEGEND}</p></section>"


def _latency(report: Report) -> str:
    if not report.timings:
        return ""
    table = _table(LATENCY_HEADINGS, latency_rows_of(report), kind="latency")
    return f"<section><h2>Latency of a call</h2>{table}<p class='caption'>{LATENCY_LEGEND}</p></section>"


def _table(headings: Sequence[str], rows: Sequence[tuple[Cell, ...]], *, kind: str, bold: int = -1) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        f"<tr{' class=deployed' if place == bold else ''}>{''.join(map(_cell, row))}</tr>"
        for place, row in enumerate(rows)
    )
    return (
        f"<div class='wide'><table class='{kind}'><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    value, note = cell
    return f"<td>{escape(value)}{f'<small>{escape(note)}</small>' if note else ''}</td>"


def _plots(report: Report) -> list[str]:
    if not can_plot():
        return [_NO_PLOTS]
    plots = [
        ("Accuracy against cost", plot_trade_off(report), "Filled and joined: no other stage is better in both."),
        ("Cost of every stage", plot_stages(report), ""),
    ]
    if report.curves:
        plots.append(("Training", plot_curves(report), ""))
    if report.losses:
        plots.append(("Losses of every stage", plot_losses(report), LOSS_LEGEND))
    return [
        f"<section><h2>{title}</h2><figure>{svg}{f'<figcaption>{caption}</figcaption>' if caption else ''}"
        "</figure></section>"
        for title, svg, caption in plots
    ]


def _files(report: Report) -> str:
    of_stages = {stage.file: f"{stage.name}, weights {stage.weights_sha256[:12]}" for stage in report.stages}
    files = {**of_stages, **report.artefacts}
    files.pop("", None)
    if not files:
        return ""
    rows = "\n".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(what)}</td></tr>" for name, what in files.items()
    )
    return f"<section><h2>Files in the run's folder</h2><table class='files'><tbody>{rows}</tbody></table></section>"


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    versions = " · ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"<section><h2>How it was measured</h2><ul>{notes}</ul>"
        f"{f'<p class=versions>{escape(versions)}</p>' if versions else ''}</section>"
    )

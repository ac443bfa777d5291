"""HTML page of a report, which needs no other file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lightning_optim.report.plot import can_plot, plot_curves, plot_stages, plot_trade_off
from lightning_optim.report.result import Report
from lightning_optim.report.table import HEADINGS, LEGEND, Cell, rows_of
from lightning_optim.report.wording import say_bytes, say_factor, say_percent, say_points

_NO_PLOTS = "<section><p class='notice'>No plots: pip install 'lightning-optim[report]'</p></section>"


def render_page(report: Report) -> str:
    """Return the page: headline figures, the stages, plots, files, how it was measured.

    Style and plots are embedded; text follows the reader's light or dark setting. Without matplotlib, one line
    stands where the plots would.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = [_headline(report), _stages(report), *_plots(report), _files(report), _notes(report)]
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


def _headline(report: Report) -> str:
    base, deployed = report.base, report.deployed
    agreement = say_percent(report.parity["top1_agreement"]).replace(".00 %", " %")
    figures = [
        (say_factor(base.bytes, deployed.bytes), "smaller file"),
        (say_factor(base.latency_ms_b32, deployed.latency_ms_b32), "faster at batch 32"),
        (say_factor(base.latency_ms_b1, deployed.latency_ms_b1), "faster at batch 1"),
        (say_points(base.test_accuracy, deployed.test_accuracy), "points of test accuracy"),
        (agreement, "of answers as trained"),
    ]
    cards = [
        f"<div class='figure'><strong>{escape(value)}</strong><span>{label}</span></div>"
        for value, label in figures
        if value
    ]
    accuracy = f"{say_percent(base.test_accuracy)} to {say_percent(deployed.test_accuracy)} on the test set"
    size = f"{say_bytes(base.bytes)} to {say_bytes(deployed.bytes)}"
    lead = f"From {base.name} to {deployed.name} in {len(report.stages)} stages: {accuracy}, {size}."
    return f"<p class='lead'>{escape(lead)}</p>\n<div class='figures'>{''.join(cards)}</div>"


def _stages(report: Report) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows_of(report))
    return (
        "<section><h2>Stage by stage</h2><div class='wide'><table class='stages'>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div><p class='caption'>{LEGEND}</p></section>"
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

"""Section of a page about an architecture search: the front, the pick beside its alternatives, and what decides."""

from __future__ import annotations

from html import escape

from lightning_optim.nas.measure import say_number
from lightning_optim.report.figure import can_plot
from lightning_optim.report.search_findings import Found, SearchFindings
from lightning_optim.report.search_plot import FRONT_LEGEND, plot_effects, plot_front

_MOST_ROWS = 12


def render_search(name: str, findings: SearchFindings) -> str:
    """Return the section of one search stage as HTML."""
    parts = [_lead(findings), _front(name, findings), _alternatives(findings), _measured(findings)]
    parts.append(_effects(name, findings))
    return f"<section><h2>Search: {escape(name)}</h2>{''.join(parts)}</section>"


def _lead(findings: SearchFindings) -> str:
    goals = " and ".join(findings.title(name) for name in findings.objectives)
    bounds = [
        f"{entry['title']} {'at least' if entry['mode'] == 'max' else 'at most'} {say_number(entry['bound'])}"
        for entry in findings.measures.values()
        if entry["bound"] is not None
    ]
    within = f" within {', '.join(bounds)}" if bounds else ""
    text = (
        f"{len(findings.evaluations):,} of {findings.num_architectures:,} architectures were evaluated, looking for "
        f"the best {goals}{within}."
    )
    return f"<p>{escape(text)}</p>"


def _front(name: str, findings: SearchFindings) -> str:
    if not can_plot():
        return ""
    return f"<figure>{plot_front(findings, name)}<figcaption>{FRONT_LEGEND}</figcaption></figure>"


def _alternatives(findings: SearchFindings) -> str:
    others = [found for found in findings.pareto if found != findings.pick][: _MOST_ROWS - 1]
    own = [found for found in findings.evaluations if dict(found.options) == dict(findings.own)]
    rows = [("pick", findings.pick), *[("front", found) for found in others]]
    rows += [("as it was", found) for found in own[:1] if found != findings.pick and found not in others]
    head = "".join(f"<th>{escape(findings.title(name))}</th>" for name in findings.measures)
    body = "\n".join(_row(kind, found, findings) for kind, found in rows)
    return (
        f"<div class='wide'><table><thead><tr><th></th>{head}<th>differs from the pick in</th></tr></thead>"
        f"\n<tbody>{body}</tbody></table></div>"
    )


def _row(kind: str, found: Found, findings: SearchFindings) -> str:
    values = "".join(f"<td>{say_number(found.values[name])}</td>" for name in findings.measures)
    shown = found.options if found == findings.pick else findings.changes(found)
    text = ", ".join(f"{name}={option}" for name, option in shown.items())
    deployed = " class=deployed" if found == findings.pick else ""
    return f"<tr{deployed}><td>{kind}</td>{values}<td>{escape(text)}</td></tr>"


def _measured(findings: SearchFindings) -> str:
    if not findings.measured:
        return ""
    rows = "".join(
        f"<tr><td>{escape(findings.title(name))}</td><td>{say_number(findings.pick.values[name])}</td><td>{say_number(value)}</td></tr>"
        for name, value in findings.measured.items()
    )
    return (
        "<div class='wide'><table><thead><tr><th>of the pick</th><th>in the search</th><th>once it was trained</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _effects(name: str, findings: SearchFindings) -> str:
    if not (can_plot() and findings.effects):
        return ""
    objective = escape(findings.title(findings.objectives[0]))
    caption = (
        f"What each option adds to {objective}, beside the mean of the architectures evaluated: an additive fit, with "
        "the options of the pick in colour."
    )
    return f"<figure>{plot_effects(findings, name)}<figcaption>{caption}</figcaption></figure>"

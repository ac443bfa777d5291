import io

from rich.console import Console

from lightning_optim.report import Report, StageResult
from lightning_optim.report.table import HEADINGS, print_table, rows_of

STAGES = [
    StageResult(
        name=name,
        test_accuracy=accuracy,
        validation_accuracy=1.0,
        parameters=size,
        macs=10 * size,
        bytes=4 * size,
        latency_ms_b1=latency,
        latency_ms_b32=12.3,
        agreement=1.0,
    )
    for name, accuracy, size, latency in (("base", 0.98, 300_000, 1.0), ("qat", 0.975, 25_000, None))
]
REPORT = Report(stages=STAGES, parity={"top1_agreement": 1.0}, title="[red]not markup[/red]")


def test_the_base_is_compared_with_nothing_and_the_others_with_it():
    base, qat = (dict(zip(HEADINGS, row, strict=True)) for row in rows_of(REPORT))
    assert not any(note for _, note in base.values())
    assert qat["test %"] == ("97.50", "-0.50")
    assert qat["params"] == ("25.0 k", "12.0\N{MULTIPLICATION SIGN}")
    assert qat["ms b1"][1] == ""


def test_it_fits_eighty_columns_and_shows_text_as_it_is():
    text = io.StringIO()
    print_table(REPORT, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    assert "[red]not markup[/red]" in text.getvalue()
    assert all(stage.name in text.getvalue() for stage in STAGES)

import io
from dataclasses import replace

from rich.console import Console

from lightning_optim.cost import Timing
from lightning_optim.report import Report, StageResult
from lightning_optim.report.table import HEADINGS, latency_rows_of, print_table, rows_of

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


def timed(is_calm):
    return {
        "base": {1: Timing(cpu=(1.0,) * 3, wall=(2.0,) * 3), 32: Timing(cpu=(9.0,) * 3, wall=(20.0,) * 3)},
        "qat": {
            1: Timing(cpu=(0.5,) * 3, wall=(0.6,) * 3, is_calm=is_calm),
            32: Timing(cpu=(3.0,) * 3, wall=(4.0,) * 3),
        },
    }


def test_latency_is_cpu_time_with_wall_time_beside_it_and_a_ratio_that_may_not_be_decided():
    decided, open_one = (replace(REPORT, timings=timed(is_calm)) for is_calm in (True, False))
    assert latency_rows_of(decided)[2] == (
        ("qat", ""),
        ("1", ""),
        ("0.500", "0.500 to 0.500"),
        ("0.600", "0.600 to 0.600"),
        ("2.0\N{MULTIPLICATION SIGN}", "2.00 to 2.00"),
    )
    assert latency_rows_of(open_one)[2][-1] == ("not decided", "2.00 to 2.00")
    heading = HEADINGS.index("ms b1")
    assert [rows_of(each)[1][heading][1][4:] for each in (decided, open_one)] == ["", " ?"]


def test_the_file_for_each_aim_and_every_remark_are_printed():
    text = io.StringIO()
    whole = replace(
        REPORT, timings=timed(True), best={"speed": "qat", "size": "base"}, remarks=["qat lost [b]to[/b] x."]
    )
    print_table(whole, Console(file=text, width=80))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "what to deploy on this machine" in text.getvalue()
    assert "- qat lost [b]to[/b] x." in text.getvalue()


def test_it_fits_eighty_columns_and_shows_text_as_it_is():
    text = io.StringIO()
    print_table(REPORT, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    assert "[red]not markup[/red]" in text.getvalue()
    assert all(stage.name in text.getvalue() for stage in STAGES)

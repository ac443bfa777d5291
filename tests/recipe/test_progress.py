import logging
from io import StringIO

import pytest
from rich.console import Console

from lightning_optim.callbacks.trainer.messages import MESSAGES, tell
from lightning_optim.recipe.progress import RecipeProgress
from support import quiet


@pytest.mark.parametrize("is_shown", [True, False])
def test_only_the_first_process_says_that_a_stage_is_done(is_shown):
    written = StringIO()
    with RecipeProgress(1, Console(file=written), is_shown=is_shown) as display:
        display.begin("base")
        display.done("base", "98 %")
    assert ("98 %" in written.getvalue()) is is_shown


@pytest.mark.parametrize("is_shown", [True, False])
def test_what_callbacks_say_is_shown_though_lightning_is_silenced_and_the_logger_is_left_as_it_was(is_shown):
    written, lightning = StringIO(), logging.getLogger("lightning.pytorch")
    before, level = (MESSAGES.level, MESSAGES.propagate, [*MESSAGES.handlers]), lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with RecipeProgress(1, Console(file=written, width=200), is_shown=is_shown) as display:
            display.begin("prune")
            tell(quiet(), "3 of 8 [channels] gone")
            tell(quiet(), "4 of 8 [channels] gone")
    finally:
        lightning.setLevel(level)
    lines = written.getvalue().splitlines()
    assert all((f"prune: {count} of 8 [channels] gone" in lines) is is_shown for count in (3, 4))
    assert (MESSAGES.level, MESSAGES.propagate, MESSAGES.handlers) == before

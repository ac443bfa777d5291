from io import StringIO

import pytest
from rich.console import Console

from lightning_optim.recipe.progress import RecipeProgress


@pytest.mark.parametrize("is_shown", [True, False])
def test_only_the_first_process_says_that_a_stage_is_done(is_shown):
    written = StringIO()
    with RecipeProgress(1, Console(file=written), is_shown=is_shown) as display:
        display.begin("base")
        display.done("base", "98 %")
    assert ("98 %" in written.getvalue()) is is_shown

import itertools

import pytest

from lightning_optim.errors import OrderError
from lightning_optim.recipe.order import check_order


@pytest.mark.parametrize(
    "kinds",
    [
        ["train"],
        ["train", "export"],
        ["train", "prune", "distil", "qat", "export"],
        ["train", "search", "train", "prune", "finetune", "qat", "export"],
        ["search", "distil", "qat"],
        ["prune", "prune", "finetune", "qat"],
        ["qat", "qat", "export"],
    ],
)
def test_orders_that_make_sense(kinds):
    check_order(kinds)


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ([], "at least one stage"),
        (["export"], "no trained model"),
        (["finetune", "qat"], "nothing yet that it could go on to train"),
        (["train", "export", "qat"], "what is deployed is final"),
        (["train", "export", "export"], "what is deployed is final"),
        (["train", "qat", "prune"], "prune first"),
        (["train", "qat", "distil"], "use a qat stage"),
        (["train", "qat", "finetune"], "use a qat stage"),
        (["train", "qat", "qat", "train"], "use a qat stage"),
        (["train", "prune", "search"], "search first"),
        (["train", "prune", "train"], "use a finetune stage"),
        (["train", "distil", "train"], "use a finetune stage"),
        (["search", "qat"], "inherited weights"),
        (["search", "export"], "inherited weights"),
        (["train", "polish"], "there are train, search, prune"),
    ],
)
def test_orders_that_make_none_are_refused_with_the_reason(kinds, reason):
    with pytest.raises(OrderError, match=reason):
        check_order(kinds)


def test_a_stage_between_does_not_lift_a_ban():
    for between in itertools.product(["qat"], repeat=2):
        with pytest.raises(OrderError, match="'prune' cannot come after 'qat'"):
            check_order(["train", "qat", *between, "prune"])

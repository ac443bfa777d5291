from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of


class DDPStrategy: ...


class Own(DDPStrategy): ...


def test_a_class_is_found_by_its_own_name_and_by_those_that_it_derives_from():
    assert is_instance_of(Own(), "Own")
    assert is_instance_of(Own(), "FSDPStrategy", "DDPStrategy")
    assert not is_instance_of(DDPStrategy(), "Own")
    assert not is_instance_of(None, "DDPStrategy")

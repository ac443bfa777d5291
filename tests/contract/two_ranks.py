"""Run by ``test_two_ranks``, twice at once: one fit per case, each of which must end the same on both ranks.

Usage: ``python two_ranks.py ddp|fsdp2 FOLDER LABEL...``; prints ``LABEL equal`` or ``LABEL refused: why`` per case.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed

spec = importlib.util.spec_from_file_location("contract_cases", Path(__file__).with_name("conftest.py"))
shared = importlib.util.module_from_spec(spec)
sys.modules["contract_cases"] = shared
spec.loader.exec_module(shared)


class Sharded(shared.Module):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net.stem, self.net.mix, self.net):
            if not hasattr(layer, "unshard"):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def whole(value):
    """The whole of a sharded tensor, and of whatever holds it."""
    if isinstance(value, torch.Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def run(kind, case):
    module = case.module(kind=Sharded) if kind == "fsdp2" else case.module()
    strategy = ModelParallelStrategy(tensor_parallel_size=1, data_parallel_size=2) if kind == "fsdp2" else "ddp"
    callback = case.make()
    if kind == "fsdp2" and case.callback == "nas_supernet":
        callback.search_at = "call"  # a search at the end of the fit is refused there
    trainer = shared.make_trainer(callback, strategy=strategy, devices=2)
    try:
        trainer.fit(module, shared.loader(2 * shared.BATCHES), shared.loader(4))
    except (ValueError, RuntimeError) as error:
        if type(error).__module__ not in ("builtins", "lightning_optim.errors"):
            raise
        return f"refused: {str(error).splitlines()[0]}"
    # Under FSDP2 each rank has batch-norm statistics of its own, with or without a callback.
    ends = [dict(module.named_parameters()), dict(module.named_buffers()) if kind == "ddp" else {}]
    moments = [whole(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]
    own = callback.state_dict()
    if case.callback == "pruning_scheduler":
        own = {**own, "example": None, "evidence": None}  # each rank keeps what its own data showed
        zeros = sum(int((value == 0).sum()) for name, value in whole(ends[0]).items() if value.dim() > 1)
        total = sum(value.numel() for name, value in whole(ends[0]).items() if value.dim() > 1)
        sparse = zeros / total if type(callback.structure).__name__ == "Weight" else 0.5  # others count no weights
        assert abs(sparse - 0.5) < 0.02, sparse
        if kind == "fsdp2":
            own = {"reached": own["reached"]}  # each rank keeps the masks of its own part
    everyone = [None, None]
    distributed.all_gather_object(everyone, [whole(ends), moments, own])
    try:
        shared.Kit.same(*everyone, case.label)
    except AssertionError as error:
        return f"differs at {str(error).splitlines()[0]}"
    return "equal"


def main():
    kind, folder, *labels = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in shared.cases():
        if case.label in labels:
            said = run(kind, shared.Case(case.callback, case.overrides, case.label, Path(folder)))
            sys.stdout.write(f"{case.label} {said}\n")  # in one piece: both ranks share the stream
            sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Run by ``test_answer_cache_on_ranks``, twice at once: fits under DDP whose samples change ranks in each epoch.

Usage: ``python cache_on_ranks.py FOLDER``; each rank prints ``LABEL VERDICT asked NUMBER``.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from support import same


def helper(name, file):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cached = helper("fits_on_ranks", "test_answer_cache.py")
refused = helper("refused_on_ranks", "test_answer_cache_refused.py")


def report(label, student, callback):
    counts = torch.tensor(cached.asked(callback))
    distributed.all_reduce(counts)
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, dict(student.state_dict()))
    say(f"{label} {'equal' if same(*everyone) else 'differs'} asked {int(counts)}")


def say(text):
    sys.stdout.write(f"{text}\n")  # in one piece: both ranks share the stream
    sys.stdout.flush()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    settings = {"strategy": "ddp", "devices": 2}
    for label, top_k in (("first", None), ("second", None), ("top", 2)):
        callback = cached.distil(folder / str(top_k), top_k=top_k)
        batches = cached.loader(batch_size=5)
        report(label, cached.fit(callback, batches=batches, **settings), callback)
    try:
        cached.fit(cached.distil(folder / "odd"), batches=cached.loader(refused.Augmented(), batch_size=5), **settings)
    except ValueError as error:
        say(f"augmented refused: {str(error).split()[0]}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

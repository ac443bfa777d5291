"""Run by ``test_peer``: mutual learning under DDP, where each rank sees other data; prints ``peer equal``."""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from support import same

spec = importlib.util.spec_from_file_location("peer_cases", Path(__file__).with_name("test_peer.py"))
cases = importlib.util.module_from_spec(spec)
sys.modules["peer_cases"] = cases
spec.loader.exec_module(cases)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    student, callback = cases.Student(), cases.learn_mutually()
    cases.fit(student, callback, strategy="ddp", devices=int(sys.argv[1]))
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, dict(callback.teacher_module.state_dict()))
    verdict = "equal" if same(*everyone) else "differs"
    verdict = "untrained" if same(everyone[0], dict(cases.net(7, 1).state_dict())) else verdict
    sys.stdout.write(f"peer {verdict}\n")
    sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Report of a run: every stage's figures, with latencies measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_optim.export.onnx_file.kernels import Kernels, inspect_kernels
from lightning_optim.export.onnx_file.session import time_models
from lightning_optim.recipe.artefact import load_inputs
from lightning_optim.recipe.run import Finished
from lightning_optim.report.result import MEASURED, Report, collect_versions
from lightning_optim.report.write import write_report

_BATCHES = (1, 32)


def summarize(finished: Sequence[Finished], folder: Path, seconds: float) -> Report:
    """Measure latencies, and write ``report.json`` and ``report.html`` into ``folder``.

    Args:
        finished: The stages of a run, in order.
        folder: The run's folder.
        seconds: Time to spend on each batch size, over all stages.
    """
    trained = [done for done in finished if done.kind != "export"]
    paths = {done.result.name: done.folder / "model.onnx" for done in trained}
    example = [tensor.numpy() for tensor in load_inputs(trained[0].folder / "inputs.safetensors")]
    times = time_models(paths, example, _BATCHES, seconds=seconds)
    stages = [
        replace(done.result, latency_ms_b1=times[name][1].cpu_ms, latency_ms_b32=times[name][32].cpu_ms)
        for done, name in zip(trained, paths, strict=True)
    ]
    last = stages[-1]
    kernels = inspect_kernels(trained[-1].folder / "model.onnx")
    parity = {"top1_agreement": last.agreement or 0.0, "integer_kernel_fraction": kernels.integer_fraction}
    report = Report(
        stages=stages,
        parity=parity,
        versions=collect_versions(),
        notes=[*MEASURED, _kernel_note(kernels)],
        artefacts=_artefacts(finished, folder),
    )
    write_report(report, folder)
    return report


def _kernel_note(kernels: Kernels) -> str:
    floating = f"; in floating point: {_listed(kernels.floating)}" if kernels.floating else "; none in floating point"
    return f"Kernels of the deployed model after ONNX Runtime's own optimization: {_listed(kernels.integer)}{floating}."


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _artefacts(finished: Sequence[Finished], folder: Path) -> dict[str, str]:
    artefacts = {"report.json": "these figures, for programs", "config.yaml": "the configuration of the run"}
    if (folder / "model.onnx").is_file():
        artefacts = {"model.onnx": "the deployed model", **artefacts}
    for done in finished:
        if done.kind != "export":
            place = done.folder.relative_to(folder)
            artefacts[str(place / "weights.safetensors")] = f"trained weights of {done.result.name}"
            artefacts[str(place / "last.ckpt")] = f"checkpoint of {done.result.name}"
    return artefacts

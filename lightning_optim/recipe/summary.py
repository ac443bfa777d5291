"""Report of a run: every stage's figures, with latencies measured side by side, and the file to deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_optim.atomic import write_atomic
from lightning_optim.cost.turns import Timing
from lightning_optim.export.onnx_file.integer_speed import measure_integer_speed
from lightning_optim.export.onnx_file.kernels import Kernels, inspect_kernels
from lightning_optim.export.onnx_file.session import load_session, time_models
from lightning_optim.recipe.artefact import load_inputs
from lightning_optim.recipe.run import Finished
from lightning_optim.recipe.search_stage import PICK, read_findings
from lightning_optim.report.deployment import Deployment
from lightning_optim.report.result import MEASURED, Report, StageResult, collect_versions
from lightning_optim.report.search_findings import SearchFindings
from lightning_optim.report.wording import say_percent
from lightning_optim.report.write import write_report

_BATCHES = (1, 32)


def summarize(
    finished: Sequence[Finished],
    folder: Path,
    seconds: float,
    deployment: Deployment | None = None,
    batch: int | None = None,
) -> Report:
    """Measure latencies, write ``report.json`` and ``report.html`` into ``folder``, and the chosen file if it exports.

    Args:
        finished: The stages of a run, in order.
        folder: The run's folder.
        seconds: Time to spend on each batch size, over all stages.
        deployment: Chooses the file that becomes ``model.onnx``, if a stage of the run exports; ``None`` is the
            default.
        batch: The only batch that the files take, which is timed then; ``None`` times 1 and 32.
    """
    deployment = deployment or Deployment()
    trained = [done for done in finished if done.kind not in ("export", "search")]
    trained = trained or [done for done in finished if done.kind == "search"]  # a pick is compared once it is trained
    paths = {done.result.name: done.folder / "model.onnx" for done in trained}
    example = [tensor.numpy() for tensor in load_inputs(trained[0].folder / "inputs.safetensors")]
    timings = time_models(paths, example, _BATCHES if batch is None else (batch,), seconds=seconds)
    stages = [
        replace(done.result, latency_ms_b1=_cpu_ms(timings[name], 1), latency_ms_b32=_cpu_ms(timings[name], 32))
        for done, name in zip(trained, paths, strict=True)
    ]
    model = deployment.chosen(stages, timings)
    remarks = deployment.remarks(stages, timings)
    if any(done.kind == "export" for done in finished):
        _publish(paths[model], folder / "model.onnx")
        remarks += _choice(model, stages[-1].name, deployment.aim)
    kernels, inputs = inspect_kernels(paths[model]), load_session(paths[model]).input_shapes
    deployed = next(stage for stage in stages if stage.name == model)
    measured = {"top1_agreement": deployed.agreement, "relative_error": deployed.relative_error}
    parity = {name: value for name, value in measured.items() if value is not None}
    report = Report(
        stages=stages,
        parity=parity | {"integer_kernel_fraction": kernels.integer_fraction},
        versions=collect_versions(),
        notes=[*MEASURED, _input_note(inputs), _kernel_note(kernels), *_share_notes(stages), *_integer_notes(trained)],
        artefacts=_artefacts(finished, folder, model),
        timings=timings,
        best=deployment.best(stages, timings),
        model=model,
        remarks=remarks,
        losses={done.result.name: done.losses for done in trained if done.losses is not None},
        searches=_searches(finished, stages),
    )
    write_report(report, folder)
    return report


def _searches(finished: Sequence[Finished], stages: Sequence[StageResult]) -> dict[str, SearchFindings]:
    """What the search stages have found, with the figures of the stage that then trained the pick."""
    found: dict[str, SearchFindings] = {}
    for place, done in enumerate(finished):
        if done.kind != "search":
            continue
        findings = read_findings(done.folder)
        names = [later.result.name for later in finished[place + 1 : place + 2]]
        after = next((stage for stage in stages if stage.name in names), done.result)
        found[done.result.name] = replace(findings, measured=_measured(findings, after))
    return found


def _measured(findings: SearchFindings, stage: StageResult) -> dict[str, float]:
    figures = {
        "MACs": stage.macs,
        "Parameters": stage.parameters,
        "WeightBytes": stage.bytes,
        "Latency": stage.latency_ms_b1,
    }
    known = {name: figures.get(findings.title(name)) for name in findings.measures}
    return {name: float(value) for name, value in known.items() if value is not None}


def _publish(chosen: Path, model: Path) -> None:
    content = chosen.read_bytes()
    if not model.is_file() or model.read_bytes() != content:
        write_atomic(model, content)


def _choice(model: str, last: str, aim: str) -> list[str]:
    """What the run's model is, where the order of the stages lets expect another."""
    if model == last:
        return []
    return [f"model.onnx is the file of {model}, the best for {aim}; with deploy.aim=last it is that of {last}."]


def _share_notes(stages: Sequence[StageResult]) -> list[str]:
    shares = [f"{each.name} {say_percent(each.integer_share)}" for each in stages if each.integer_share is not None]
    return [f"Share of the multiply-accumulates that runs in integers: {', '.join(shares)}."] if shares else []


def _integer_notes(trained: Sequence[Finished]) -> list[str]:
    return [str(measure_integer_speed())] if any(done.kind == "qat" for done in trained) else []


def _cpu_ms(timings: Mapping[int, Timing], batch: int) -> float | None:
    return timings[batch].cpu_ms if batch in timings else None


def _input_note(inputs: Mapping[str, Sequence[int | str]]) -> str:
    listed = "; ".join(f"{name} [{', '.join(map(str, sizes))}]" for name, sizes in inputs.items())
    return f"Inputs of the deployed model: {listed}. A size that is a name is open, and a number the only one it takes."


def _kernel_note(kernels: Kernels) -> str:
    integer = _listed(kernels.integer) if kernels.integer else "none in integers"
    floating = f"in floating point: {_listed(kernels.floating)}" if kernels.floating else "none in floating point"
    return f"Kernels of the deployed model after ONNX Runtime's own optimization: {integer}; {floating}."


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _artefacts(finished: Sequence[Finished], folder: Path, model: str) -> dict[str, str]:
    artefacts = {"report.json": "these figures, for programs", "config.yaml": "the configuration of the run"}
    if (folder / "model.onnx").is_file():
        artefacts = {"model.onnx": f"the deployed model, which is that of {model}", **artefacts}
    for done in finished:
        if done.kind != "export":
            place = done.folder.relative_to(folder)
            artefacts[str(place / "weights.safetensors")] = f"trained weights of {done.result.name}"
            artefacts[str(place / "last.ckpt")] = f"checkpoint of {done.result.name}"
        if done.kind == "search":
            artefacts[str(place / PICK)] = f"what {done.result.name} has picked"
    return artefacts

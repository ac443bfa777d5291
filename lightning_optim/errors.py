"""Exceptions that a program may want to catch; a caller's plain mistake stays ``ValueError`` or ``TypeError``."""


class LightningOptimError(Exception):
    """Root of every error class in this package."""


class TargetError(LightningOptimError, ValueError):
    """A target names nothing, or names a layer that the technique cannot treat."""


class TapError(LightningOptimError, RuntimeError):
    """A tap was set on a module, but no forward pass went through it."""


class TeacherError(LightningOptimError, RuntimeError):
    """Error of a teacher that does not take what the student's network is given."""


class SampleError(LightningOptimError, ValueError):
    """A loss cannot be computed from a batch: it holds too few samples, or not the labels that are needed."""


class CaptureError(LightningOptimError, RuntimeError):
    """``torch.export`` cannot capture the model."""


class ShrinkError(LightningOptimError, RuntimeError):
    """Channels cannot be removed, or the shrunk model is not the masked one."""


class ExportError(LightningOptimError, RuntimeError):
    """A model cannot be exported, or its exported form fails the check."""


class TracingError(LightningOptimError, RuntimeError):
    """A simulated network cannot be written as one graph."""


class ArtefactError(LightningOptimError, ValueError):
    """A file is missing, truncated, unsafe, or of another model."""


class OrderError(LightningOptimError, ValueError):
    """A recipe asks for stages in an order that makes no sense."""


class LatencyError(LightningOptimError, RuntimeError):
    """A network cannot be run to measure how long it takes."""


class RankMismatchError(LightningOptimError, RuntimeError):
    """Ranks of one job disagree on what they are about to do."""


def reason_of(error: BaseException) -> str:
    r"""First line of an error's message; its class where there is no message.

    Example:
        >>> reason_of(ValueError("too large\nadvice")), reason_of(KeyError())
        ('too large', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cause_of(error: BaseException) -> str:
    """Class and first line of the innermost cause of an error: exporters and runtimes wrap it in pages of advice.

    Example:
        >>> try:
        ...     raise RuntimeError("pages") from ValueError("too large")
        ... except RuntimeError as error:
        ...     cause_of(error)
        'ValueError: too large'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

"""The one tree of errors. Each message says where, what was found, what is allowed, what to do."""

from __future__ import annotations


class NpusimError(Exception):
    """Base of everything npusim raises on purpose; the command line prints it as one sentence and exits 2."""


class BadInputError(NpusimError):
    """A file, name or option that the user gave cannot be used."""


class ModelError(BadInputError):
    """The ONNX model is malformed, unreadable or needs something that was not given (a dimension, a constant)."""


class MissingWeightsError(ModelError):
    """The file that holds a model's weights is not beside it."""


class HardwareError(BadInputError):
    """The hardware description has an unknown key, a wrong type or an impossible value."""


class PlanError(BadInputError):
    """A plan does not fit its model, its hardware or this version's schema."""


class OutputError(BadInputError):
    """The output folder is not ours to write."""


class ExportError(BadInputError):
    """A target cannot express a layer, or an exporter cannot be used."""


class MissingExtraError(NpusimError):
    """An optional dependency is needed: names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed; run: pip install 'npusim[{extra}]'"
        )


class CheckFailedError(NpusimError):
    """A check that the user asked for did not hold; the command line exits 1."""

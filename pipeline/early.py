"""A word before any config is read: MONAI's command imports MLflow, and MLflow loads its environment's plug-ins.

``pyproject.toml`` names the one here as an entry point. Nothing else imports this module: MLflow does, in the middle of
its own import.
"""

from __future__ import annotations

import sys

from mlflow.tracking.context.abstract_context import RunContextProvider

from pipeline.chain import explain


class EarlyErrors(RunContextProvider):
    """Explains why MONAI's command could not begin, in one line; a plug-in of MLflow that adds no tags to runs."""

    def in_context(self) -> bool:
        """Never: there is nothing to tell MLflow."""
        return False

    def tags(self) -> dict[str, str]:
        """None."""
        return {}


def explain_early() -> None:
    """From now on, in MONAI's command, an error that nobody catches is explained if the configs' files are its reason.

    A config takes over from here with `pipeline.bundle.explain_errors`.
    """
    # Python imports the package of ``-m monai.bundle`` before its __main__ is there to be asked.
    if sys.excepthook is sys.__excepthook__ and "monai.bundle" in sys.orig_argv:
        sys.excepthook = explain


explain_early()

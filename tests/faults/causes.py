"""All causes, registered in the order of their kinds."""

from faults import (
    axes,
    code,
    headers,
    intensities,
    layouts,
    messages,
    mlflow_runs,
    odd_files,
    resume,
    secrets,
    text,
    vanishing,
    written,
)

__all__ = [
    "axes",
    "code",
    "headers",
    "intensities",
    "layouts",
    "messages",
    "mlflow_runs",
    "odd_files",
    "resume",
    "secrets",
    "text",
    "vanishing",
    "written",
]

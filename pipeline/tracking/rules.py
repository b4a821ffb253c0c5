"""What MLflow accepts: addresses of stores, and keys and values of runs."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.provenance import redact

# In characters.
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
DIGEST_LENGTH = 36

# In entries of one log_batch call.
METRICS_PER_BATCH = 1000
PARAMS_AND_TAGS_PER_BATCH = 100


def resolve_tracking_uri(tracking_uri: str | None, default_store: str | Path) -> str | None:
    """Decides where to track.

    Args:
        tracking_uri: MLflow store. None takes the environment variable ``MLFLOW_TRACKING_URI``, and if that is not set
            ``default_store``. ``"none"`` or an empty string turns tracking off.
        default_store: store, or path of an SQLite file.

    Returns:
        MLflow store, with an absolute path if it is an SQLite file; None if tracking is off.

    Raises:
        ValueError: MLflow cannot keep runs there.
    """
    if tracking_uri is None:
        default = str(default_store)
        tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or (
            default if "://" in default else f"sqlite:///{default}"
        )
    if not isinstance(tracking_uri, str):
        raise ValueError(f"tracking_uri must be the address of an MLflow store, or none, got {tracking_uri!r}")
    if tracking_uri.strip().lower() in ("", "none"):
        return None
    scheme = _checked_scheme(tracking_uri)
    if tracking_uri != "databricks" and ("://" not in tracking_uri or scheme == "file"):
        raise ValueError(
            "tracking_uri must be a database or a server, such as sqlite:////folder/mlflow.db or http://host:5000, "
            f"got {redact(tracking_uri)!r}: MLflow no longer keeps runs in plain folders"
        )
    if scheme != "sqlite":
        return tracking_uri
    database = sqlite_path(tracking_uri)
    if database is None or database.name in ("", ":memory:"):
        raise ValueError(
            f"tracking_uri must name an SQLite file, as in sqlite:////folder/mlflow.db, got {redact(tracking_uri)!r}"
        )
    _, mark, query = tracking_uri.partition("?")
    return f"sqlite:///{database.resolve()}{mark}{query}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """File of an SQLite store; None for any other store."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])


def _checked_scheme(tracking_uri: str) -> str:
    """What an address begins with; refuses what is no address, in words that hold no password."""
    try:
        parts = urlsplit(tracking_uri)
        parts.port  # noqa: B018 - looked at, so that it is checked
    except ValueError:
        raise ValueError(
            f"tracking_uri is no address: {redact(tracking_uri)!r}. In a user name or a password, characters such as "
            "/ # ? : have to be percent-encoded, as %2F; or give them as MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        ) from None
    known = difflib.get_close_matches(parts.scheme, ("http", "https", "sqlite", "postgresql"), n=1, cutoff=0.7)
    if known and "+" not in parts.scheme and parts.scheme != known[0]:
        raise ValueError(f"tracking_uri begins with {parts.scheme!r}, expected {known[0]!r}")
    return parts.scheme


def without_credentials(tracking_uri: str) -> str:
    """The address of a store without user name, password and tokens."""
    try:
        parts = urlsplit(tracking_uri)
    except ValueError:
        return redact(tracking_uri)
    query = "&".join(part for part in parts.query.split("&") if redact(f"?{part}") == f"?{part}")
    if "@" not in parts.netloc and query == parts.query:
        return tracking_uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def clean_key(name: str) -> str:
    """Makes a key that MLflow takes: letters, digits, ``_ - . /`` and blanks, at most 250 characters, a plain path."""
    parts = re.sub(r"[^\w\-./ ]", "_", name).split("/")
    key = "/".join(part for part in parts if part not in ("", ".", "..")) or "_"
    if len(key) > KEY_LENGTH:  # the digest keeps apart what only differs behind the cut
        key = f"{key[: KEY_LENGTH - 9]}.{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return key


def clean_values(values: Mapping[str, str], length: int) -> dict[str, str]:
    """Makes keys and values that MLflow takes.

    Args:
        values: key -> text.
        length: longest text allowed; longer ones are cut and end in dots.
    """
    return {
        clean_key(key): value if len(value) <= length else f"{value[: length - 3]}..." for key, value in values.items()
    }


def dataset_input(dataset: Mapping[str, Any], context: str) -> dict[str, dict[str, str]]:
    """Describes a data set as MLflow keeps it, which fills the column *Dataset* of its page.

    MLflow knows a data set by name and digest, and keeps one profile of it for all runs of an experiment, that of the
    first. So the numbers of pairs, which depend on how it is split, are also tags, which each run has of its own.

    Args:
        dataset: ``name``, of its folder, ``digest``, SHA-256 or None, and ``pairs``, their number by split.
        context: what the run does with it, such as "training" or "testing".

    Returns:
        ``dataset``, the arguments of MLflow's ``Dataset``, and ``tags``. The digest is cut to what MLflow takes;
        the whole is in the profile and in the tags. Of a name that is a path only the last part is told.
    """
    name, digest = Path(str(dataset["name"])).name, dataset.get("digest")
    facts = {f"{split}_pairs": number for split, number in (dataset.get("pairs") or {}).items()}
    facts |= {"sha256": digest} if digest else {}
    return {
        "dataset": {
            "name": name,
            "digest": (digest or "unknown")[:DIGEST_LENGTH],
            "source_type": "local",
            "source": json.dumps({"uri": name}),
            "profile": json.dumps(facts),
        },
        "tags": {"mlflow.data.context": context, **{key: str(fact) for key, fact in facts.items()}},
    }

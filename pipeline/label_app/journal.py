"""The log: a line for each request, with its id and without anybody's name."""

from __future__ import annotations

import contextvars
import hashlib
import hmac
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from pipeline.label_app.access import App, Message, Receive, Send
from pipeline.label_app.limits import LONGEST_NAME, one_line

Templates = Callable[[Message], tuple[str | None, Mapping[str, str]]]
QUIET = ("monailabel", "task_batch_infer", "dicomweb_client", "filelock", "watchdog")
"""Loggers that write names of images below the level of a warning."""
LONGEST_LINE = 10_000
"""Characters of a line of the log."""
CLIENT_CLOSED_REQUEST = 499
"""Status, as nginx has it, of a request whose client did not wait for the answer."""

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Of the request that is being answered; empty outside of any."""

_SOUND_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORD = re.compile(r"[^\s/\\\"'`,;:()\[\]{}<>|=]+")
_UID = re.compile(r"\b\d+(?:\.\d+){5,}\b")
_LOOSE = re.compile(r"[\s/\\\"'`,;:()\[\]{}<>|=]")

logger = logging.getLogger(__name__)


def log_file() -> Path | None:
    """The file that this process writes its log to; None without one."""
    files = (
        handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)
    )
    return next(map(Path, files), None)


def sound_id(given: str | None) -> str:
    """The id that a client or a proxy gave a request, if it can be written anywhere; else a new one."""
    return given if given and _SOUND_ID.fullmatch(given) else uuid.uuid4().hex


class Pseudonyms:
    """Puts a number in place of each name of an image; the same as long as the server runs, another one after that.

    Args:
        names: of the images that there are now. Names are often those of patients.
    """

    def __init__(self, names: Callable[[], Collection[str]] = tuple) -> None:
        self._names = names
        self._key = secrets.token_bytes(16)

    def of(self, name: str) -> str:
        """The number of a name."""
        return "image-" + hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:10]

    def hide(self, text: str) -> str:
        """A text without names of images and without DICOM UIDs."""
        names = set(self._names())
        for name in sorted((name for name in names if _LOOSE.search(name) and name in text), key=len, reverse=True):
            text = text.replace(name, self.of(name))

        def hide_word(match: re.Match[str]) -> str:
            word = match.group()
            for end in range(min(len(word), 2 * LONGEST_NAME), 0, -1):  # name, name.nii, name.nii.gz
                if (end == len(word) or not word[end].isalnum()) and word[:end] in names:
                    return self.of(word[:end]) + word[end:]
            return word

        if names:
            text = _WORD.sub(hide_word, text)
        return _UID.sub(lambda match: self.of(match.group()), text)


class Discretion(logging.Filter):
    """Makes every record fit to be read by others: no names, the request's id in front, entries that nobody forges.

    What a client sent may hold line ends and escape codes: the second line of an entry and those that follow begin with
    a bar, and control characters are written as codes.

    Args:
        pseudonyms: for the names; None to leave them.
    """

    def __init__(self, pseudonyms: Pseudonyms | None) -> None:
        super().__init__()
        self._pseudonyms = pseudonyms

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; let it pass."""
        if getattr(record, "discreet", False):  # two handlers share a record
            return True
        text, current = self._clean(record.getMessage()), request_id.get()
        record.msg, record.args = f"[{current}] {text}" if current else text, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = f"  | {self._clean(record.exc_text)}" if record.exc_text else None
        record.discreet = True
        return True

    def _clean(self, text: str) -> str:
        if self._pseudonyms:
            text = self._pseudonyms.hide(text)
        return "\n  | ".join(one_line(line, LONGEST_LINE) for line in text.split("\n"))


def keep_names_out_of_logs(names: Callable[[], Collection[str]]) -> None:
    """Make every handler of this process discreet; a log for finding faults, at the level DEBUG, keeps the names.

    Args:
        names: of the images that there are now.
    """
    pseudonyms = None
    if logging.getLogger().level > logging.DEBUG:
        pseudonyms = Pseudonyms(names)
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
    discretion = Discretion(pseudonyms)
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.addFilter(discretion)


class Journal:
    """Writes a line for each request and gives it an id, which the answer has in its header ``X-Request-ID``.

    The line has the method, the template of the path, the status, milliseconds and the model. It has neither the path
    nor the query, since there are names of images in them.

    Args:
        app: the server.
        templates: says which template a request's path follows, None for none, and what stands in the places of names.
        models: names that a model may have.
    """

    def __init__(self, app: App, templates: Templates, models: Callable[[], Iterable[str]]) -> None:
        self.app = app
        self._templates = templates
        self._models = models

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on and write down what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
        current = sound_id(given.decode("latin-1"))
        token = request_id.set(current)
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [entry for entry in message.get("headers", ()) if entry[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", current.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception:
            status = status or 500
            raise
        finally:
            template, parameters = self._templates(scope)
            model = parameters.get("model")
            logger.info(
                "%s %s %d %d ms model=%s",
                scope["method"] if scope["method"].isalpha() else "-",
                template or "-",
                status or CLIENT_CLOSED_REQUEST,
                round(1000 * (time.monotonic() - started)),
                model if model in set(self._models()) else "-",
            )
            request_id.reset(token)

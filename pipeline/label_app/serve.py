"""Starts the server: MONAI Label's with our app, on this machine only unless it is told otherwise."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pipeline.bundle import project_dir
from pipeline.files import replacing
from pipeline.label_app.access import read_token
from pipeline.label_app.listening import auth_is_off, check_listening, describe_listening

EPILOG = """\
Whoever reaches the server may read and change all studies. It listens on this machine only; to listen on others' way,
say who may come in: --token-file FILE, MONAI Label's login (MONAI_LABEL_AUTH_ENABLE=true), or --auth off for everybody.

examples:
  python -m pipeline.label_app.serve --studies data/studies --models reggan
  python -m pipeline.label_app.serve --studies data/studies --models all --host 0.0.0.0 --token-file token \\
      --ssl-keyfile key.pem --ssl-certfile cert.pem
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="serve", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", required=True, help="folder of volumes, or address of a DICOMweb server")
    parser.add_argument("--models", default="all", help="names of bundles, by commas; default all in their folder")
    parser.add_argument("--bundles", help="folder that they lie in; default that of the project")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default this machine only")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--token-file", help="file with the token that every request needs")
    parser.add_argument("--auth", choices=["on", "off"], default="on", help="off: everybody may come in")
    parser.add_argument("--queue", help="translations that may wait or run at a time")
    parser.add_argument("--ssl-keyfile", help="key for HTTPS")
    parser.add_argument("--ssl-certfile", help="certificate for HTTPS")
    parser.add_argument("--log-file", help="default server-PORT.log in the folder of outputs: each server has its own")
    parser.add_argument("--verbose", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="of the log")
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="further settings of the app"
    )
    return parser


def find_log_file(options: argparse.Namespace) -> Path:
    """Where the server writes what it does: a file for each port, unless one is named."""
    folder = dict(options.conf).get("output_dir") or project_dir() / "outputs" / "label"
    return Path(options.log_file or Path(folder) / f"server-{options.port}.log").expanduser().absolute()


def write_log_settings(log_file: Path) -> Path:
    """Write MONAI Label's settings of the log, but for one file, beside that file.

    MONAI Label's own log lies in the folder of the app: every server of an installation would write to the same one,
    turn it over under the others' hands, and answer ``GET /logs/`` with what the others do.

    Returns:
        the file of settings, as `logging.config.dictConfig` takes them.

    Raises:
        NotWrittenError: nothing may be written there.
    """
    found = json.loads(resources.files("monailabel").joinpath("logging.json").read_text(encoding="utf-8"))
    for handler in found["handlers"].values():
        if "filename" in handler:
            handler["filename"] = str(log_file)
    settings = log_file.with_name(f"{log_file.name}.json")
    with replacing(settings) as file:
        file.write_text(json.dumps(found, indent=2))
    return settings


def monai_command(options: argparse.Namespace) -> list[str]:
    """The arguments of MONAI Label's program for the same server."""
    command = ["start_server", "--app", str(Path(__file__).resolve().parent), "--studies", options.studies]
    command += ["--host", options.host, "--port", str(options.port), "--verbose", options.verbose]
    for name in ("ssl_keyfile", "ssl_certfile"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    for name in ("models", "bundles", "token_file", "auth", "queue"):
        if getattr(options, name):
            command += ["--conf", name, getattr(options, name)]
    for name, value in options.conf:
        command += ["--conf", name, value]
    return command


def check(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """Check what can be checked before MONAI Label is there, which takes a while; say what there will be.

    Args:
        options: see `build_parser`.
        environment: variables of the process.

    Raises:
        ValueError: if the server would be of no use, or let everybody in by mistake.
    """
    conf = dict(options.conf)
    token_file = conf.get("token_file") or options.token_file
    login = environment.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "t", "yes", "y", "on")
    if token_file:
        read_token(token_file)
    if bool(options.ssl_keyfile) != bool(options.ssl_certfile):
        raise ValueError("HTTPS needs both --ssl-keyfile and --ssl-certfile, got one of them")
    off = auth_is_off(conf.get("auth") or options.auth)
    check_listening(options.host, bool(token_file), login, off)
    return describe_listening(options.host, options.port, bool(options.ssl_certfile), token_file, login, off)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, say where the server will be, and run it.

    Args:
        arguments: of the command line; default those of this process.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    log_file = find_log_file(options)
    try:
        said = check(options, os.environ)
        log_settings = write_log_settings(log_file)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{said}\nlog:         {log_file}", flush=True)
    sys.argv = ["monailabel", *monai_command(options), "--log_config", str(log_settings)]
    from monailabel.main import Main

    Main().run()


if __name__ == "__main__":
    main()

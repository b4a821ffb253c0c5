"""Where the server listens, who may reach it there, and what is refused for that; needs nothing of MONAI Label."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from typing import Any

EVERYWHERE = ("0.0.0.0", "::", "")
DEFAULT_HOST = "0.0.0.0"
"""Of ``monailabel start_server``."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and nobody else reaches it there."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def auth_is_off(value: Any) -> bool:
    """What ``--conf auth`` means.

    Raises:
        ValueError: if it is neither ``on`` nor ``off``.
    """
    if value not in (None, "", "on", "off"):
        raise ValueError(f"auth must be 'on' or 'off', got {value!r}")
    return value == "off"


def check_listening(host: str | None, token: bool, login: bool, auth_off: bool) -> None:
    """Refuse to let everybody in by mistake.

    Args:
        host: that the server listens on; None where that is not known.
        token: whether a token is needed.
        login: whether MONAI Label's own authentication is on.
        auth_off: whether somebody said that everybody may come in.

    Raises:
        ValueError: if the server would be reached from elsewhere without any of the three; or if everybody may come in
            and yet a token or a login is wanted.
    """
    if auth_off and (token or login):
        raise ValueError("auth must not be 'off' beside token_file or MONAI_LABEL_AUTH_ENABLE: say one of them")
    if (host is None or not is_loopback(host)) and not (token or login or auth_off):
        where = "nobody knows where" if host is None else f"on {host}"
        raise ValueError(
            f"the server would listen {where}, and whoever reaches it could read and change all studies: listen on "
            "127.0.0.1 (--host 127.0.0.1), let it ask for a token (--conf token_file FILE), use MONAI Label's login "
            "(MONAI_LABEL_AUTH_ENABLE=true), or say --conf auth off if everybody may"
        )


def host_of_command(command: Sequence[str] | None = None) -> str | None:
    """The host out of the arguments of ``monailabel start_server``; None if this process was started in another way.

    Args:
        command: arguments with the program before them; default those of this process.
    """
    arguments = list((sys.argv if command is None else command)[1:])
    if arguments[:1] != ["start_server"]:
        return None
    host = DEFAULT_HOST
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        # Any beginning of a long option stands for it, as argparse has it.
        if equals and len(name) > 3 and "--host".startswith(name):
            host = value
        elif argument == "-i" or (len(argument) > 3 and "--host".startswith(argument)):
            host = arguments[place + 1] if place + 1 < len(arguments) else host
        elif argument.startswith("-i") and not argument.startswith("--"):
            host = argument[2:].removeprefix("=")
    return host


def describe_listening(
    host: str, port: int, tls: bool = False, token_file: str | None = None, login: bool = False, auth_off: bool = False
) -> str:
    """What whoever starts a server should know: its address, who may reach it, and how to log in.

    Args:
        host: that it listens on.
        port: that it listens on.
        tls: whether it speaks HTTPS.
        token_file: file with the token that it asks for.
        login: whether MONAI Label's own authentication is on.
        auth_off: whether everybody may come in.
    """
    shown = "THIS-MACHINE" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    scheme = "https" if tls else "http"
    who = "this machine only" if is_loopback(host) else f"every machine that reaches {shown}, port {port}"
    if auth_off:
        how = "nobody has to: WHOEVER REACHES IT CAN READ AND CHANGE ALL STUDIES"
    elif login:
        how = "with a token of the OpenID Connect server, in the header 'Authorization: Bearer TOKEN'"
    elif token_file:
        how = f"with the header 'Authorization: Bearer TOKEN', the token being what {token_file} holds"
    else:
        how = "nobody has to"
    lines = [f"address:     {scheme}://{shown}:{port}", f"who reaches: {who}", f"logging in:  {how}"]
    if not tls and not is_loopback(host):
        lines.append("warning:     without TLS whoever is on the way reads tokens and volumes")
    return "\n".join(lines)

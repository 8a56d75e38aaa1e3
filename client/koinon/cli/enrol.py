"""`koinon enrol`: a device becomes one of a federation."""

import os
import re
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.output import AsJson, moment, print_json
from koinon.identity import Credentials
from koinon.identity.access import device_folder
from koinon.identity.enrolment import enrol as enrol_device
from koinon.identity.enrolment import register
from koinon.identity.keys import read_public
from koinon_core.errors import UsageError
from koinon_core.identity import Token

__all__ = ["enrol"]

_CREDENTIAL = "koinon-token"
Folder = Annotated[
    Path | None,
    typer.Option(
        "--credentials", help="The folder for its credentials; default: beside the device's memory."
    ),
]


def enrol(
    name: Annotated[
        str | None, typer.Option(envvar="KOINON_NAME", help="This device's name; default: the machine's.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="The file with the token; default: systemd's credential koinon-token, or standard input."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Enrol anew over what is there; the key for life stays.")
    ] = False,
    owner_key: Annotated[
        Path | None, typer.Option(help="The federation owner's public key: believe only whom it signed.")
    ] = None,
    credentials: Folder = None,
    json: AsJson = False,
) -> None:
    """Make this device one of a federation: its keys are made here and stay here, and the token is used up.

    A token is never an argument: every user of the machine can read those.
    """
    name = name or _machine()
    pinned = read_public(owner_key) if owner_key else None
    token = Token.parse(_token(token_file))
    folder = credentials or device_folder(name) / "identity"
    _tell(enrol_device(token, name, folder, again=again, owner_key=pinned), json)


def outside(
    address: Annotated[str, typer.Option(envvar="KOINON_ADDRESS", help="The coordinator, HOST:PORT.")],
    domain: Annotated[str, typer.Option(help="The federation's trust domain.")],
    tls_key: Annotated[Path, typer.Option(help="The private key, PEM.")],
    tls_cert: Annotated[Path, typer.Option(help="Its certificate with the chain, PEM.")],
    ca: Annotated[Path, typer.Option(help="Who vouches for the coordinator, PEM.")],
    roster_key: Annotated[
        Path | None, typer.Option(help="The public key with which the coordinator signs the roster.")
    ] = None,
    owner_key: Annotated[
        Path | None, typer.Option(help="The federation owner's public key: believe only whom it signed.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Register anew over what is there; the key for life stays.")
    ] = False,
    credentials: Folder = None,
    json: AsJson = False,
) -> None:
    """Make this device one of a federation whose certificates come from an outside CA.

    The files stay where they are, and what that CA's tools put there later is used from the next connection on.
    """
    key = owner_key or roster_key
    if key is None:
        raise UsageError("say whom this device believes: --roster-key, the coordinator's, or --owner-key")
    from koinon.identity.keys import certificate

    folder = credentials or device_folder(certificate(_read(tls_cert)).id) / "identity"
    made = register(
        address, domain, folder, tls_key=tls_key, certificate=tls_cert, ca=ca, roster_key=read_public(key),
        pinned=owner_key is not None, again=again,
    )  # fmt: skip
    _tell(made, json)


def _tell(made: Credentials, json: bool) -> None:
    said = made.certificate
    if json:
        print_json(
            {
                "id": made.id, "domain": made.identity.domain, "address": made.address,
                "credentials": str(made.folder), "expires_at": said.end, "pinned": made.identity.pinned,
            }
        )  # fmt: skip
        return
    print(
        f"{made.id} is enrolled in {made.identity.domain}; its credentials are in {made.folder}, good until "
        f"{moment(said.end)} and renewed while it runs"
    )


def _machine() -> str:
    """The machine's name, as far as a device may have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:64].strip(".-") or "device"


def _token(file: Path | None) -> str:
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    if file is None and given and (Path(given) / _CREDENTIAL).exists():
        file = Path(given) / _CREDENTIAL
    if file is not None:
        return _read(file).decode(errors="replace")
    if sys.stdin.isatty():
        print("Paste the token, and press Enter:", file=sys.stderr)
        return sys.stdin.readline()
    return sys.stdin.read(1 << 16)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error

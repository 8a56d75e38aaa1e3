"""`koinon token ...`: what lets devices in."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.output import Address, AsJson, Credentials, Insecure, moment, print_json
from koinon.identity.folder import write
from koinon.operator import Operator
from koinon_core.errors import UsageError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.callback()
def _group() -> None:
    """Let devices in."""


@app.command(epilog="Example: koinon token create --ttl 1h --uses 1 --out ward-7.token")
def create(
    ttl: Annotated[str, typer.Option(help="How long it is good, for example 30m, 1h, 2d.")] = "1h",
    uses: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices it lets in.")] = 1,
    label: Annotated[str, typer.Option(help="Words for people, on the devices that it lets in.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write it to this file, for your user alone, and not to the terminal.")
    ] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Make a token and print it, this once. Hand it over as you would a password; `koinon enrol` uses it up."""
    seconds = _seconds(ttl)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent} to write {out.name} to")
    with Operator(address, credentials, insecure=insecure) as operator:
        made = operator.create_token(seconds, uses, label)
    if out is not None:
        write(out, made.token.encode() + b"\n")
    if json:
        shown = {"token": made.token} if out is None else {"file": str(out)}
        print_json({**shown, "expires_at": made.expires_at, "uses": uses})
        return
    if out is None:
        print(made.token)
    where = f"{out}: a token" if out else "a token"
    print(
        f"{where} for {uses} device{'s' * (uses != 1)}, good until {moment(made.expires_at)}", file=sys.stderr
    )


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if found is None or not int(found[1]):
        raise UsageError(f"--ttl {text!r} is no time; write for example 30m, 1h or 2d")
    return int(found[1]) * _UNITS[found[2]]

"""`koinon operator ...`: who may look, create runs, and decide about devices."""

from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.output import (
    Address,
    AsJson,
    Credentials,
    Insecure,
    as_dict,
    console,
    moment,
    print_json,
    table_of,
)
from koinon.identity.folder import store_operator
from koinon.identity.keys import new_tls_key, request
from koinon.operator import Operator
from koinon_core.errors import Conflict, UsageError
from koinon_core.identity import check_name

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_ROLES = ("viewer", "operator", "admin")
Name = Annotated[str, typer.Argument(help="The operator's name.")]


@app.command(epilog="Example: koinon operator create eve --role operator --to eve-credentials")
def create(
    name: Name,
    role: Annotated[
        str, typer.Option(help="viewer looks, operator has runs of their own, admin may do everything.")
    ],
    to: Annotated[Path | None, typer.Option(help="The folder to write; default: operator-NAME.")] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Make an operator and write their credentials, a folder to hand over; the key in it is made here."""
    if role not in _ROLES:
        raise UsageError(f"--role {role!r} is none of {', '.join(_ROLES)}")
    folder = to or Path(f"operator-{check_name(name)}")
    if folder.exists():
        raise Conflict(f"{folder} is there already; name another folder with --to")
    key = new_tls_key()
    with Operator(address, credentials, insecure=insecure) as operator:
        made = operator.create_operator(name, role, request(key, name)[0])
        if made.certificate:
            store_operator(folder, key, made.certificate, made.ca, operator.address)
    if json:
        print_json(
            {**as_dict(made.operator), "credentials": str(folder.absolute()) if made.certificate else ""}
        )
    elif not made.certificate:
        print(f"{made.operator.name} is {made.operator.role}; your own CA issues the certificate")
    else:
        print(
            f"{made.operator.name} is {made.operator.role}; {folder} has the credentials, for "
            "~/.config/koinon/operator, or KOINON_OPERATOR"
        )


@app.command("ls", epilog="Example: koinon operator ls --json")
def list_operators(
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """List all operators and their roles."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = operator.operators()
    if json:
        print_json([as_dict(o) for o in found])
        return
    rows = [
        (o.name, o.role, o.status, moment(o.created_at), o.created_by, moment(o.expires_at), o.revoked_by)
        for o in found
    ]
    columns = ("operator", "role", "status", "created", "by", "certificate until", "revoked by")
    console().print(table_of(columns, rows, measured=("revoked by",)))


@app.command(epilog="Example: koinon operator revoke eve")
def revoke(
    name: Name,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Take an operator's rights away, now."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = operator.revoke_operator(name)
    if json:
        print_json(as_dict(found))
    else:
        print(f"{found.name} is revoked")

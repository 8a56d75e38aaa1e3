"""`koinon roster ...`: the list of devices, signed by the federation's owner with a key that is kept offline."""

import json as encoder
from pathlib import Path
from typing import Annotated, Any

import typer

from koinon.cli.output import Address, AsJson, Credentials, Insecure, print_json
from koinon.identity import Credentials as DeviceCredentials
from koinon.identity import device_access, keys
from koinon.identity.folder import write
from koinon.operator import Operator
from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, Conflict, UsageError
from koinon_core.identity import Entry

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_MOST = 64 << 20  # bytes of a roster's file: some hundred thousand devices


@app.command(epilog="Example: koinon roster keygen owner.key")
def keygen(
    file: Annotated[
        Path, typer.Argument(help="The file for the private key; the public one goes beside it.")
    ],
) -> None:
    """Make an owner's key: FILE stays on a machine without a network, FILE.pub goes to the devices."""
    public = file.with_name(f"{file.name}.pub")
    for path in (file, public):
        if path.exists():
            raise Conflict(f"{path} is there already; name another file")
    pem = keys.new_signing_key()
    write(file, pem)
    write(public, keys.public_pem(keys.public_signing_key(keys.private_signing_key(pem))))
    print(f"{file}: keep it offline; {public}: for `koinon enrol --owner-key` and `koinon roster pin`")


@app.command(epilog="Example: koinon roster export roster.json")
def export(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """Write the roster's next version, unsigned, for its owner to look at and to sign."""
    with Operator(address, credentials, insecure=insecure) as operator:
        got = operator.export_roster()
    entries = [Entry.decode(data) for data in got.entries]
    _store(file, entries)
    print(f"{file}: {len(entries)} devices, version {got.version}; next: koinon roster sign")


@app.command(epilog="Example: koinon roster sign --key owner.key roster.json signed.json")
def sign(
    key: Annotated[Path, typer.Option(help="The owner's private key.")],
    roster: Annotated[Path, typer.Argument(metavar="IN", help="What was exported, and looked at.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Sign every entry, here and without a network. An entry that is taken out of IN leaves the roster."""
    private = keys.private_signing_key(_read(key))
    entries = [entry.signed_by(private) for entry in _load(roster)[0]]
    _store(out, entries, keys.public_signing_key(private))
    print(f"{out}: {len(entries)} devices, signed; next: koinon roster import")


@app.command("import", epilog="Example: koinon roster import signed.json")
def import_roster(
    file: Annotated[Path, typer.Argument(help="What the owner signed.")],
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Give the signed roster to the coordinator; every device gets its own entry when it next asks."""
    entries, key = _load(file)
    if not key:
        raise UsageError(f"{file} is not signed; `koinon roster sign` does that")
    with Operator(address, credentials, insecure=insecure) as operator:
        got = operator.import_roster([entry.encoded for entry in entries], key)
    if json:
        print_json({"entries": got.entries, "version": got.version})
    else:
        print(f"{got.entries} entries of version {got.version} are imported")


@app.command(epilog="Example: koinon roster pin owner.key.pub --name ward-7")
def pin(
    owner_key: Annotated[Path, typer.Argument(help="The owner's public key.")],
    name: Annotated[str | None, typer.Option(envvar="KOINON_NAME", help="This device's name.")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="This device's credentials; default: where `koinon enrol` put them.")
    ] = None,
) -> None:
    """On an enrolled device: believe from now on only those whom the owner's key signed."""
    found = _device(name, credentials)
    found.change(roster_key=keys.read_public(owner_key).hex(), pinned=True)
    print(f"{found.id} believes whom {owner_key} signed, from its next start on")


@app.command(epilog="Example: koinon roster forget ward-9 --name ward-7")
def forget(
    other: Annotated[str, typer.Argument(help="The device whose key to forget.")],
    name: Annotated[str | None, typer.Option(envvar="KOINON_NAME", help="This device's name.")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="This device's credentials; default: where `koinon enrol` put them.")
    ] = None,
) -> None:
    """On an enrolled device: let another device have a new key. Be sure that it was really set up anew."""
    found = _device(name, credentials)
    if not found.forget(other):
        raise UsageError(f"{found.id} has never met {other!r}")
    print(f"{found.id} believes the next key of {other}, from its next start on")


def _device(name: str | None, credentials: Path | None) -> DeviceCredentials:
    found = device_access(name=name, credentials=credentials, insecure=False).credentials
    assert found is not None  # that is what is not insecure
    return found


def _store(file: Path, entries: list[Entry], key: bytes = b"") -> None:
    """The roster as JSON that a person can read, an entry a line."""
    lines = ",\n".join("  " + encoder.dumps(encoder.loads(entry.encoded)) for entry in entries)
    head = f'"key": "{key.hex()}", ' if key else ""
    write(file, f'{{{head}"entries": [\n{lines}\n]}}\n'.encode())


def _load(file: Path) -> tuple[list[Entry], bytes]:
    """(entries, the public key of who signed them) of a roster's file. UsageError if it is none."""
    data = _read(file)
    try:
        value: dict[str, Any] = encoder.loads(data)
        entries = [Entry.decode(canonical(one)) for one in value["entries"]]
        return entries, bytes.fromhex(value.get("key", ""))
    except (ValueError, TypeError, LookupError, AttributeError, BadBlob) as error:
        raise UsageError(f"{file} is no roster as `koinon roster export` writes it: {error}") from error


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MOST:
            raise UsageError(f"{file} is too large to be a roster or a key")
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error

"""`koinon device ...`: who may take part."""

from typing import Annotated, Any

import typer

from koinon.cli.output import (
    Address,
    AsJson,
    Credentials,
    Insecure,
    as_dict,
    console,
    figure,
    moment,
    print_json,
    size,
    table_of,
)
from koinon.operator import Operator
from koinon_core.selection.traits import labels_in
from koinon_core.wire.v1 import enrolment_pb2 as pb
from koinon_core.wire.v1 import fleet_pb2 as fleet

__all__ = ["app"]

_CONDITION = ("heat °C", "disk free", "state")
"""Columns that a narrow terminal does without, the first of them first."""
_MAY_GO = ("certificate until", "enrolled", "software", "gpu", "cores", "memory", *_CONDITION)
"""Columns that take no place where nothing stands in them."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Name = Annotated[str, typer.Argument(help="The device's name.")]


@app.command("ls", epilog="Example: koinon device ls --json")
def list_devices(
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """List all devices that enrolled or were seen, with what became of them."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = operator.devices()
    if json:
        print_json([_as_json(d) for d in found])
        return
    columns = (
        "device",
        "status",
        "attached",
        "enrolled",
        "last seen",
        "certificate until",
        "software",
        "memory",
        "cores",
        "gpu",
        "heat °C",
        "disk free",
        "state",
        "label",
    )
    rows = [
        (
            d.id, d.status, "yes" if d.attached else "", moment(d.enrolled_at), moment(d.last_seen),
            moment(d.expires_at), d.software, size(d.able.memory_mb << 20), str(d.able.cores or ""),
            str(d.able.gpu or ""), *_condition(d.condition), "; ".join(filter(None, (d.label, d.reason))),
        )
        for d in found
    ]  # fmt: skip
    console().print(table_of(columns, rows, measured=_MAY_GO, spare=_CONDITION))


def _condition(now: fleet.Condition) -> tuple[str, str, str]:
    """How a device was when it last said so; empty where it did not."""
    free = size(now.disk_free_mb * (1 << 20)) if now.HasField("disk_free_mb") else ""
    return figure(now.heat, now.HasField("heat")), free, now.state


@app.command(epilog="Example: koinon device revoke ward-7 --reason 'lost'")
def revoke(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; it is shown with the device.")] = "",
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Let a device in no more: its calls are refused from now on, and its stream is cut within a second."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = operator.revoke_device(name, reason)
    _told(found, f"{found.id} is revoked", json)


@app.command(epilog="Example: koinon device label ward-7 second floor site=ward-7 weight=3")
def label(
    name: Name,
    words: Annotated[
        list[str],
        typer.Argument(help="Words for people, and labels NAME=VALUE for [selection] of runs; '' for none."),
    ],
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Write words for people on a device, and labels by which runs choose; what was there before goes."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = operator.label_device(name, " ".join(words))
    _told(found, f"{found.id}: {found.label or 'no label'}{_chosen_by(found.label)}", json)


def _chosen_by(words: str) -> str:
    """What runs read of these words, where somebody meant them to: 'weight = 3', in three words, is no label."""
    labels = ", ".join(f"{name} = {value!r}" for name, value in labels_in(words).items())
    return (
        f" (to [selection]: {labels or 'no label; write NAME=VALUE without spaces'})" if "=" in words else ""
    )


def _told(found: pb.DeviceInfo, said: str, json: bool) -> None:
    if json:
        print_json(_as_json(found))
    else:
        console().print(said)


def _as_json(found: pb.DeviceInfo) -> dict[str, Any]:
    return {**as_dict(found), "key": found.key.hex()}

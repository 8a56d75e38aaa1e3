"""`koinon`: the operator's and the researcher's command line.

Tables for people go to standard output, `--json` for programs; progress goes to standard error. Exit codes: 0 done,
1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 nobody answers (trying again may help), 6 ended without its
quorum or without a model, 130 interrupted.
"""

import os
import sys
from typing import Annotated

import typer

from koinon.cli import (
    audit,
    client,
    compare,
    create,
    demo,
    device,
    enrol,
    evaluate,
    operators,
    roster,
    runs,
    token,
    track,
    updates,
)
from koinon_core import __version__
from koinon_core.errors import KoinonError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Koinon: federated learning whose rounds do not hang, do not lose work, and explain themselves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
runs.app.command(
    epilog="Example: koinon run create digits --model init.safetensors --rounds 10 --min-clients 3"
)(create.create)
runs.app.command(epilog="Example: koinon run compare plain prox --plot curves.png")(compare.compare)
runs.app.command(epilog="Example: koinon run track digits --to jsonl:digits.jsonl --to tensorboard:runs")(
    track.track
)
runs.app.command(epilog="Example: koinon run evaluate digits --with held_out:measure --follow")(
    evaluate.evaluate
)
app.add_typer(runs.app, name="run", help="Create, watch, explain, control and export runs.")
app.add_typer(
    updates.app, name="update", help="List updates: what they weigh, what they lost, what became of them."
)
app.add_typer(audit.app, name="audit", help="Show, verify and replay what was decided.")
app.add_typer(token.app, name="token", help="Make tokens, which let devices in.")
app.add_typer(device.app, name="device", help="List, revoke and label devices.")
app.add_typer(operators.app, name="operator", help="Create, list and revoke operators.")
app.add_typer(
    roster.app, name="roster", help="Pin the devices to a key that the federation's owner keeps offline."
)
app.command(epilog="Example: koinon enrol --name ward-7 < ward-7.token")(enrol.enrol)
app.command(
    "register",
    epilog="Example: koinon register --address fl.example.org:8440 --domain example.org --tls-key k.pem "
    "--tls-cert c.pem --ca ca.pem --roster-key roster.pub",
)(enrol.outside)
app.command(epilog="Example: koinon demo --clients 10 --rounds 10 --json demo.json")(demo.demo)
app.command(
    name="client",
    epilog="Example: koinon client train.py --address 127.0.0.1:8440 --run cifar",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(client.client)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koinon {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: our errors leave as one sentence and their exit code."""
    sys.path.insert(0, os.getcwd())  # an owner's plugin lies where they start from
    try:
        app()
    except KoinonError as error:
        print(f"koinon: {error}", file=sys.stderr)
        sys.exit(error.exit)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        sys.exit(0)

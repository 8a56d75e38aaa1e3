"""`koinon-coordinator`: the service's command line."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import structlog
import typer

from koinon_coordinator import db_cli
from koinon_coordinator.config import Config
from koinon_core import __version__
from koinon_core.errors import KoinonError
from koinon_core.strategy.registry import load_plugins

__all__ = ["main"]

_M_ARENA_MAX = -8  # malloc.h

app = typer.Typer(
    help="The Koinon coordinator: runs federated rounds for the devices that attend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(db_cli.app, name="db", help="Check, back up and upgrade the run database.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koinon-coordinator {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


Dir = Annotated[Path, typer.Option("--dir", envvar="KOINON_FEDERATION", help="The federation's folder.")]
_DIR = Path("koinon-federation")


@app.command(epilog="Example: koinon-coordinator init --dir koinon-federation --domain hospitals.example.org")
def init(
    folder: Dir = _DIR,
    domain: Annotated[str, typer.Option(help="Its trust domain; default: one is drawn.")] = "",
    admin: Annotated[str, typer.Option(help="The first admin's name.")] = "admin",
    outside_ca: Annotated[
        bool, typer.Option("--outside-ca", help="Make no CA: one of your own issues all certificates.")
    ] = False,
) -> None:
    """Make a federation: its CA, the key that signs its roster, and the first admin's credentials."""
    from koinon_coordinator.identity import Home

    made = Home.init(folder, domain, time.time(), admin=admin, outside=outside_ca)
    print(f"{made.folder} holds federation {made.domain}; keep it secret, and a backup of it elsewhere")
    if outside_ca:
        print(
            f"its first admin is whoever shows a certificate for spiffe://{made.domain}/operator/{made.admin}"
        )
    else:
        print(f"{made.folder / 'admin'} holds the credentials of its first admin, {made.admin}")


@app.command(epilog="Example: koinon-coordinator admin --to ~/.config/koinon/operator")
def admin(
    folder: Dir = _DIR,
    to: Annotated[Path | None, typer.Option(help="Default: admin/ in the federation's folder.")] = None,
) -> None:
    """Make the first admin's credentials again, for example when they have expired."""
    from koinon_coordinator.identity import Home

    home = Home(folder)
    home.issue_admin(to or folder / "admin", time.time())
    print(f"{to or folder / 'admin'} holds the credentials of admin {home.admin}")


@app.command(
    epilog="Example: koinon-coordinator serve --db sqlite:///koinon.db --listen 0.0.0.0:8440 --name fl.example.org"
)
def serve(
    db: Annotated[str, typer.Option(help="The run database.")] = "sqlite:///koinon.db",
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8440",
    folder: Dir = _DIR,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text and no identities, for this machine alone.")
    ] = False,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name or address that devices use; may be repeated.")
    ] = None,
    enrol_listen: Annotated[
        str | None, typer.Option(help="Where devices enrol; default: the port after --listen's; '': nowhere.")
    ] = None,
    health_listen: Annotated[
        str, typer.Option(help="Where probes are answered, in plain text (grpc.health.v1); default: nowhere.")
    ] = "",
    address: Annotated[
        str, typer.Option(help="HOST:PORT that devices are told, if it is not what this machine sees.")
    ] = "",
    enrol_address: Annotated[str, typer.Option(help="The same, of the enrolment listener.")] = "",
    device_life: Annotated[str, typer.Option(help="How long a device's certificate is good.")] = "7d",
    tls_cert: Annotated[Path | None, typer.Option(help="An outside CA's certificate of this server.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="The outside CA that issues devices' and operators' certificates.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder for large contents; default: beside the SQLite file.")
    ] = None,
    quota: Annotated[
        str, typer.Option(help="The most that folder may hold, for example 20GB; default: all of the disk.")
    ] = "",
    uploads: Annotated[int, typer.Option(help="Uploads that are written at a time; others wait.")] = 32,
    device_rate: Annotated[
        str, typer.Option(help="The most a device may move a second, for example 5MB; default: no limit.")
    ] = "",
    device_quota: Annotated[
        str, typer.Option(help="The most a device may move in a round, for example 1GB; default: no limit.")
    ] = "",
    visit_period: Annotated[
        str, typer.Option(help="How often devices that do not stay attached come by, for example 5m.")
    ] = "5m",
    keepalive: Annotated[
        str,
        typer.Option(
            help="How often a silent connection is asked for a sign of life, for example 4m where bytes cost money; "
            "default: 30s."
        ),
    ] = "",
    plugin: Annotated[
        list[str] | None, typer.Option(help="A module with your own strategies; may be repeated.")
    ] = None,
    log: Annotated[str, typer.Option(help="Log as 'text' or 'json', to standard error.")] = "text",
) -> None:
    """Serve devices and operators until SIGTERM or Ctrl-C. Prints one line when it is ready."""
    _logging(log)
    sys.path.insert(0, os.getcwd())  # an owner's plugin lies where they start from
    config = Config(
        db=db, listen=listen, data=data, quota=quota, plugins=tuple(plugin or ()), uploads=uploads,
        device_rate=device_rate, device_quota=device_quota, insecure=insecure, folder=folder,
        enrol_listen=enrol_listen, names=tuple(name or ()), address=address, enrol_address=enrol_address,
        tls_cert=tls_cert, tls_key=tls_key, client_ca=client_ca, device_life=device_life, health_listen=health_listen,
        visit_period=visit_period, keepalive=keepalive,
    )  # fmt: skip
    load_plugins(config.plugins)
    _few_arenas()
    asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said once, by us
    # Imported here: `--help` need not load gRPC and SQLAlchemy.
    from koinon_coordinator.federation import Federation
    from koinon_coordinator.identity import Security
    from koinon_coordinator.service import serve as serve_federation
    from koinon_coordinator.store import Store

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    security = None if config.insecure else Security.of(config)

    def ready(port: int) -> None:
        line = f"koinon-coordinator {__version__} listens on {config.listen.rpartition(':')[0]}:{port}"
        if security is not None and security.enrol_port:
            line += f", enrols on {config.enrol_at.rpartition(':')[0]}:{security.enrol_port}"
        print(line, flush=True)

    store = await asyncio.to_thread(Store, config.db, config.data, config.quota_bytes)
    try:
        await serve_federation(
            Federation(store, period=config.visit_seconds), config.listen, stop, ready, config.limits, security,
            config.health_listen, config.keepalive_seconds,
        )  # fmt: skip
    finally:
        store.close()


def _few_arenas() -> None:
    """Have glibc serve all threads from two arenas. It would make eight for each core, and pieces of a megabyte that
    come and go in many threads leave holes in all of them: with 16 uploads the process had 380 MB for itself, and has
    190."""
    with suppress(AttributeError, OSError):  # another C library has no such arenas
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _logging(style: str) -> None:
    if style not in ("text", "json"):
        raise typer.BadParameter("it is 'text' or 'json'", param_hint="--log")
    renderer = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    """The entry point: our errors leave as one sentence and their exit code."""
    try:
        app()
    except* KoinonError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, KoinonError)
        print(f"koinon-coordinator: {error}", file=sys.stderr)
        sys.exit(error.exit)


if __name__ == "__main__":
    main()

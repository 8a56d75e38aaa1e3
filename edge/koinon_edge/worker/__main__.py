"""The worker's process: `python -m koinon_edge.worker FD`, with the daemon at the other end of the socket FD.

What it hears first is its order. It ends when the run is over, when nothing is to be done for a while, when the daemon
says so, and at once when the daemon is gone: whoever starts next finds everything on disk.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from koinon import progress
from koinon.session import Session, join
from koinon_core.errors import KoinonError
from koinon_edge.line import Line
from koinon_edge.worker.desk import Desk, Orders, forget
from koinon_edge.worker.door import Door, Lost
from koinon_edge.worker.network import Network

__all__ = ["main"]

_LOOK = 0.1
_ORPHANED = 75  # EX_TEMPFAIL
_log = logging.getLogger("koinon")


class Worker:
    """One order, carried out. `order` is JSON's: task, run, name, address, credentials, state, folder, socket, linger,
    settle (nothing but what is owed is to be done), bandwidth."""

    def __init__(self, line: Line, order: Mapping[str, Any]):
        self.line, self.order, self.orders = line, order, Orders()
        self.folder = Path(order["folder"])
        self.session: Session | None = None
        self.desk: Desk | None = None
        self._busy_at = time.monotonic()

    def tell(self, kind: str, said: Any) -> None:
        if kind == "phase":
            self._busy_at = time.monotonic()
        with suppress(OSError):  # the daemon is gone: the thread that listens to it ends this process
            self.line.say(kind, said)

    # -- what the daemon says ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """On a thread of its own."""
        while (heard := self.line.hear()) is not None:
            kind, said = heard
            match kind:
                case "stop":
                    self.orders.stop = str(said)
                case "go on":
                    self.orders.stop = ""
                case "died":
                    if said["number"] == self.orders.wanted:
                        self.orders.died = str(said["code"]), str(said["detail"])
                case "rest":
                    self.orders.rest = str(said)
                case "condition":
                    if self.session is not None:
                        self.session.note(said)
                case "costs":
                    self._spent(said)
                case "end":
                    self._end()
        os._exit(_ORPHANED)

    def _end(self) -> None:
        """The daemon ends: let go of everything, as it is."""
        threading.Timer(10.0, os._exit, (_ORPHANED,)).start()
        if self.session is not None:
            self.session.close(leave=False)
        os._exit(0)

    def _spent(self, said: Mapping[str, Any]) -> None:
        if self.session is not None:
            self.session.spent(int(said["round"]), said["costs"])

    # -- its work ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        order = self.order
        network = Network(self.tell)
        progress.use(lambda _: network.moved)
        self.session = join(
            order.get("address"), run=order["run"], name=order["name"], state=self._path("state"),
            credentials=self._path("credentials"), insecure=order.get("insecure"), wait=30.0,
        )  # fmt: skip
        if order.get("bandwidth"):
            self.session.limit(float(order["bandwidth"]))
        self.session.settled = self._settled
        threading.Thread(target=self._watch, name="koinon-watch", daemon=True).start()
        try:
            if not self._settle(self.session) and order.get("settle"):
                self.tell("phase", {"state": "DONE", "reason": "its fate was known before"})
            if not order.get("settle") and not self.orders.rest:
                self._rounds(self.session)
            self._settle(self.session)
        finally:
            # What was asked meanwhile, and not begun, is the next shift's.
            failed = self.desk is not None and self.desk.failed
            self.session.close(leave=failed or not self.session.asked)
        if self.session.status:
            self.tell("over", {"status": self.session.status, "reason": self.session.reason})

    def _rounds(self, session: Session) -> None:
        door = Door(Path(self.order["socket"]), self.order["run"], self.order["name"], self._gone)
        try:
            self.desk = Desk(
                session,
                door,
                self.folder,
                self.orders,
                lambda: self.tell("need", {"number": self.orders.wanted}),
                self.tell,
            )
            self.desk.run()
            door.tell("ended", {"status": session.status, "reason": session.reason})
        except Lost as lost:
            code, detail = self.orders.died or ("FAILED", str(lost))
            if code == "ENDED":
                detail += ", without joining: does it call koinon.join()?"
            said = detail if code == "FAILED" else f"{code}: {detail}"
            session.leave(code, said)
            self.tell("lost", {"why": str(lost)})
            self.tell("phase", {"state": "ABORTED", "reason": said})
        except KoinonError as error:
            session.leave("REFUSED", str(error))
            raise
        finally:
            door.close()

    def _gone(self) -> str:
        """Why there is no use in waiting for the program any more."""
        if self.orders.died is not None:
            return self.orders.died[1]
        return self.orders.rest

    def _settle(self, session: Session) -> bool:
        """Wait for the fate of what was handed in; False if that is known already."""
        owed = session.owes
        if owed:
            self.tell("phase", {"state": "UPLOADING", "round": owed})
        while session.owes:
            if session.failure is not None:
                raise session.failure
            time.sleep(_LOOK)
        return bool(owed)

    def _watch(self) -> None:
        """Lets the session rest when there is nothing to do."""
        session = self.session
        assert session is not None
        while True:
            time.sleep(_LOOK)
            if session.owes or (self.desk is not None and self.desk.admitting):
                self._busy_at = time.monotonic()
            idle = time.monotonic() - self._busy_at
            if (self.orders.rest or idle > float(self.order.get("linger", 60.0))) and session.rest():
                return

    def _settled(self, round_: int, outcome: str) -> None:
        """An update's fate is known."""
        if self.desk is not None:
            self.desk.forget(round_)
        else:
            forget(self.folder)
        state = "DONE" if outcome == "counted" else "ABORTED"
        self.tell("phase", {"state": state, "round": round_, "reason": outcome})

    def _path(self, name: str) -> Path | None:
        return Path(self.order[name]) if self.order.get(name) else None


def main() -> None:
    """The entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    heard = line.hear()
    if heard is None or heard[0] != "work":
        raise SystemExit(_ORPHANED)
    worker = Worker(line, heard[1])
    threading.Thread(target=worker.listen, name="koinon-daemon", daemon=True).start()
    try:
        worker.work()
    except KoinonError as error:
        worker.tell("trouble", {"code": error.code, "message": str(error)})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

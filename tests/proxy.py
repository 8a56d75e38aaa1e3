"""A TCP proxy with faults: it cuts every connection once after so many bytes, or lets so many a second through."""

import socket
import threading
import time


class Proxy:
    """Listens on `port` and forwards to `target`. `cut_after` bytes upwards (or downwards) end the connection that
    carried them, once; `rate` is in bytes a second."""

    def __init__(self, target: int, *, cut_up: int = 0, cut_down: int = 0, rate: float = 0.0):
        self._target, self._rate = target, rate
        self._left = {"up": cut_up, "down": cut_down}
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
                coordinator = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for way, source, sink in (("up", device, coordinator), ("down", coordinator, device)):
                threading.Thread(target=self._pump, args=(way, source, sink), daemon=True).start()

    def _pump(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self._rate:
                    time.sleep(len(data) / self._rate)
                if self._left[way]:
                    self._left[way] = max(0, self._left[way] - len(data))
                    if not self._left[way]:
                        self.cuts += 1
                        break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()

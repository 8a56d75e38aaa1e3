"""What one device may move: bytes a second, and bytes a round. Without a clock: now is a value."""

from koinon_core.errors import RemoteProtocolError

__all__ = ["Allowance"]

_MANY = 1000


class Allowance:
    """`rate` in bytes a second and `quota` in bytes a round, of one device in both directions together; 0: no limit.

    A device that was quiet may move a second's worth at once; then each of its transfers is told how long to wait.
    """

    def __init__(self, rate: int = 0, quota: int = 0):
        self.rate, self.quota = rate, quota
        self._free_at: dict[str, float] = {}
        self._moved: dict[tuple[str, str], tuple[int, int]] = {}

    def check(self, client: str, run: str, round_: int, nbytes: int) -> None:
        """RemoteProtocolError if `nbytes` more are too many in that round."""
        moved = self._in_round(client, run, round_)
        if self.quota and moved + nbytes > self.quota:
            raise RemoteProtocolError(
                f"{client!r} has moved {moved} of the {self.quota} bytes that --device-quota allows a device in a "
                f"round, and needs {nbytes} more in round {round_}; ask the coordinator's operator for a larger one"
            )

    def moved(self, client: str, run: str, round_: int, nbytes: int, now: float) -> float:
        """Note bytes that went either way; returns for how many seconds no more of the device's may move."""
        if self.quota:
            self._moved[client, run] = (round_, self._in_round(client, run, round_) + nbytes)
        if not self.rate:
            return 0.0
        if len(self._free_at) > _MANY:
            self._free_at = {c: at for c, at in self._free_at.items() if at > now - 1.0}
        free = max(self._free_at.get(client, 0.0), now - 1.0) + nbytes / self.rate
        self._free_at[client] = free
        return max(0.0, free - now)

    def _in_round(self, client: str, run: str, round_: int) -> int:
        number, nbytes = self._moved.get((client, run), (0, 0))
        return nbytes if number == round_ else 0

"""Taking out of a text what a stranger must not see, so that what is left can still be read.

Two ways together. What is known to be secret on this machine (values of the environment, of edge.toml's environment,
arguments) is taken out wherever it stands, whatever it looks like. What looks like a key, a token, a password, an
address, a name or a path is taken out wherever it comes from. Hosts, addresses, paths and people become numbered
placeholders: the same one each time, so that a story about two hosts stays one.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["Redactor", "secrets_in"]

_WITHHELD = "<withheld>"
_TELLING = re.compile(r"key|token|secret|pass|pwd|auth|cred|cookie", re.IGNORECASE)
_USUAL = {
    "root", "true", "false", "none", "python", "python3", "linux", "xterm", "xterm-256color", "localhost", "koinon",
    "koinon-edge", "koinon_edge",
}  # fmt: skip
_LEAST_TOLD, _LEAST_ODD, _LEAST = (
    4,
    6,
    8,
)  # characters of a secret: of a telling name, with a digit in it, any other
_BETWEEN = re.compile(r"[\s:/@?&=,;]+")
_USER_INFO = re.compile(r"://[^\s/@]*@")

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_TOKEN = re.compile(r"\b(?:koinon-token-[\w.-]+|eyJ[\w.-]{8,}|gh[a-z]_\w+|hf_\w+|sk-[\w-]+|AKIA\w+)")
_WORDS = r"key|token|secret|pass(?:w(?:or)?d|phrase|(?![a-z]))|pwd|auth|credential|cookie"
# Names are of some length only, here and below: a log may hold anything, and must be read in time.
_NAME = rf"[\w.-]{{0,64}}(?:{_WORDS})[\w.-]{{0,64}}"
_VALUE = r"""(?:(?:bearer|basic)\s+)?("[^"]*"|'[^']*'|[^\s"',;&})\]]+)"""
_ASSIGNED = re.compile(rf"""(?i)\b({_NAME}["']?\s*[=:]\s*){_VALUE}""")
_OPTION = re.compile(rf"(?i)((?<![\w-])--?{_NAME}\s+){_VALUE}")
_BEARER = re.compile(r"\b([Bb]earer|Basic(?=\s+\S*[0-9A-Z=]))\s+[\w.~+/=-]{6,}")
_QUERY = re.compile(r"(://[^\s?\"']{0,512})\?[^\s\"']+")
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})*")
_SYSTEM = r"(?:sys|proc|dev|usr|lib|bin|run/systemd|etc/nv_tegra_release)(?![\w.-])"
_PATH = re.compile(rf"(?<![\w<>/.:~-])(?:~|/(?!{_SYSTEM})[\w.@+~<>-]+)(?:/[\w.@+~<>-]+)*/?")
_OURS = {
    "edge.toml", "edge.env", "device.toml", "tls.key", "tls.pem", "ca.pem", "ed25519.key", "identity.json",
    "entry.json", "life.json", "budget.json", "koinon-edge.service",
}  # fmt: skip
_ID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IP6 = re.compile(
    r"(?<![\w:.])(?=[0-9a-fA-F:.]*::|(?:[0-9a-fA-F]{1,4}:){5})(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F.]*(?:%\w+)?(?![\w:])"
)
_ALONE = r"(?<![\w<.-])(?<![^/]/)"  # not within a name, nor within a path
_HOST = re.compile(rf"{_ALONE}(?:[a-zA-Z0-9](?:[\w-]*[a-zA-Z0-9])?\.)+[a-zA-Z][a-zA-Z0-9-]*(?![\w(>-])")
_AT_PORT = re.compile(rf"{_ALONE}[a-zA-Z][\w.-]*(?=:\d{{2,5}}\b)")
_NO_HOST_BEGINS = {
    "torch", "koinon", "koinon_edge", "koinon_core", "grpc", "asyncio", "numpy", "tasks", "gate", "network", "spool",
    "e", "i",
}  # fmt: skip
_NO_HOST_ENDS = {
    "py", "toml", "json", "pem", "key", "txt", "log", "so", "c", "service", "zip", "conf", "env", "gpu", "utf-8",
}  # fmt: skip
_RANDOM = re.compile(r"(?<![\w/+-])(?=[\w/+-]*\d)(?=[\w/+-]*[a-zA-Z])[\w/+-]{24,}={0,2}")
_LONGEST_NAME = 200
_READABLE = re.compile(r"/?(?:(?:[a-z]+(?:[_-][a-z0-9]+)+|[a-z0-9_-]{1,20})(?:/|$))+")


def secrets_in(values: Iterable[tuple[str, str]]) -> set[str]:
    """Of values with the names that they have, what is to be taken out wherever it stands: what is long, odd, or of a
    telling name, and what a URL or a list of settings hides in one."""
    found = set()
    for name, value in values:
        if _TELLING.search(name) and len(value) >= _LEAST_TOLD:
            found.add(value)
        for hidden in _USER_INFO.findall(value):
            found.update(piece for piece in re.split("[:@/]+", hidden) if len(piece) >= _LEAST_TOLD)
        # A path as a whole is none: below it there may be more, and all of it goes as a path.
        found.update(p for p in (value, *_BETWEEN.split(value)) if _odd(p) and not p.startswith("/"))
    return {secret for secret in found if secret.lower() not in _USUAL | _OURS}


def _odd(value: str) -> bool:
    return len(value) >= (_LEAST_ODD if any(c.isdigit() for c in value) else _LEAST)


class Redactor:
    """`secrets` are taken out wherever they stand; `hosts` and `people` are names that are known to be such."""

    def __init__(self, secrets: Iterable[str] = (), hosts: Iterable[str] = (), people: Iterable[str] = ()):
        self._secrets = [_within(secret) for secret in sorted(set(secrets), key=len, reverse=True)]
        # A host may be called "jetson", which says nothing of "NVIDIA Jetson".
        known = sorted({h for h in hosts if len(h) > 1}, key=len, reverse=True)
        self._hosts = [_word(host, re.IGNORECASE if "." in host else 0) for host in known]
        self._people = {p for p in people if len(p) > 1 and p not in _USUAL}
        self._seen: dict[str, dict[str, str]] = {}

    def __call__(self, text: str) -> str:
        """The text without them."""
        self._people |= {p for p in re.findall(r"/(?:home|Users)/([\w.-]+)", text) if p not in _USUAL}
        for secret in self._secrets:
            text = secret.sub(_WITHHELD, text)
        for pattern, kept in _SECRETS:
            text = pattern.sub(kept, text)
        for pattern, kind in _PLACES:
            text = pattern.sub(self._path if kind == "path" else self._as(kind), text)
        for host in self._hosts:
            text = host.sub(self._as("host"), text)
        text = _AT_PORT.sub(self._host, _HOST.sub(self._host, text))
        for person in sorted(self._people, key=len, reverse=True):
            text = _word(person, re.IGNORECASE).sub(self._as("name"), text)
        return _RANDOM.sub(_unless_readable, text)

    def value(self, said: Any) -> Any:
        """A value of JSON, with every text in it redacted, names too."""
        if isinstance(said, str):
            return self(said)
        if isinstance(said, Mapping):
            return {self(str(name)): self.value(one) for name, one in said.items()}
        return [self.value(one) for one in said] if isinstance(said, list | tuple) else said

    def _as(self, kind: str) -> Callable[[re.Match[str]], str]:
        return lambda match: self._number(kind, match[0])

    def _path(self, match: re.Match[str]) -> str:
        folder, _, name = match[0].rstrip("/").rpartition("/")
        return f"{self._number('path', folder)}/{name}" if name in _OURS else self._number("path", match[0])

    def _host(self, match: re.Match[str]) -> str:
        words = match[0].lower().split(".")
        if words[-1] in _NO_HOST_ENDS or words[0] in _NO_HOST_BEGINS:
            return match[0]
        return self._number("host", match[0])

    def _number(self, kind: str, what: str) -> str:
        seen = self._seen.setdefault(kind, {})
        return seen.setdefault(what.lower() if kind == "host" else what, f"<{kind}{len(seen) + 1}>")


def _unless_readable(match: re.Match[str]) -> str:
    return match[0] if len(match[0]) < _LONGEST_NAME and _READABLE.fullmatch(match[0]) else _WITHHELD


def _within(secret: str) -> re.Pattern[str]:
    """A long one wherever it stands; a short one where it is a word, for it may be part of others."""
    text = re.escape(secret)
    return re.compile(text if len(secret) >= _LEAST else rf"(?<!\w){text}(?!\w)")


def _word(name: str, flags: int) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w<]){re.escape(name)}(?![\w>])", flags)


_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (_PEM, _WITHHELD), (_TOKEN, _WITHHELD), (_USER_INFO, f"://{_WITHHELD}@"), (_BEARER, rf"\1 {_WITHHELD}"),
    (_ASSIGNED, rf"\1{_WITHHELD}"), (_OPTION, rf"\1{_WITHHELD}"),
    (_QUERY, rf"\1?{_WITHHELD}"), (_MAIL, "<mail>"),
)  # fmt: skip
_PLACES: tuple[tuple[re.Pattern[str], str], ...] = (
    (_ID, "id"), (_MAC, "mac"), (_IP6, "ip"), (_IP4, "ip"), (_PATH, "path"),
)  # fmt: skip

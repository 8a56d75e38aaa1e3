"""What the coordinator and its devices must agree on, and nothing else.

The core is pure: bytes and numbers in, bytes and numbers out. A clock, a socket, a thread or a random number
never appears here; they are passed in as values, so that the same code runs deployed, simulated and in tests.
"""

__version__ = "0.5.0.dev0"
PROTOCOL = 5
"""The version of the wire that this package speaks; both ends compare it when a device says hello."""

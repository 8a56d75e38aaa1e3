"""How large messages may be, for both ends."""

__all__ = ["INLINE", "MESSAGE_LIMIT"]

INLINE = 64 * 1024
"""Contents up to this many bytes travel in the message that names them."""
MESSAGE_LIMIT = 4 * 1024 * 1024
"""No message is larger."""

"""Who this is: keys that never leave this machine, and the certificate that the federation gave for them.

keys.py       making keys and requests, reading certificates
folder.py     a folder of credentials: what is in it, and how it is written
access.py     which credentials are meant, and when there may be none
enrolment.py  how they come to be: with a token, or with an outside CA's certificate
renewal.py    how they stay good, beside a stream
device.py     what a device signs with and whom it believes, for secure rounds

Whatever speaks gRPC is imported by whoever needs it.
"""

from typing import TYPE_CHECKING

from koinon.identity.access import Access, device_access, device_folder, operator_access
from koinon.identity.folder import Credentials
from koinon.lazily import lazily

if TYPE_CHECKING:
    from koinon.identity.device import DeviceIdentity, identity_of

__all__ = [
    "Access", "Credentials", "DeviceIdentity", "device_access", "device_folder", "identity_of", "operator_access",
]  # fmt: skip

# What signs needs numpy, which most of what is in credentials does not.
__getattr__ = lazily(__name__, {"koinon.identity.device": ["DeviceIdentity", "identity_of"]})

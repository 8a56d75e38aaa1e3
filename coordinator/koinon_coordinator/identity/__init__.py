"""Identity on the coordinator: the federation's CA and its folder, tokens, and what a certificate says.

`pki` makes and reads certificates, `home` is the folder that `koinon-coordinator init` makes, `security` is what a
coordinator serves with, `tokens` lets devices in, and `belief` knows them again in a secure round. Nothing here speaks
gRPC or SQL: `service` and `store` do.
"""

from koinon_coordinator.identity.home import Home
from koinon_coordinator.identity.security import Security

__all__ = ["Home", "Security"]

"""What `koinon.simulation` is made of: a world (virtual time), a coordinator in memory, and devices on threads."""

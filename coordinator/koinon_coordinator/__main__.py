"""`python -m koinon_coordinator`."""

from koinon_coordinator.cli import main

if __name__ == "__main__":
    main()

"""`python -m koinon`."""

from koinon.cli import main

if __name__ == "__main__":
    main()

"""`python -m kerasseg_cli` is the same as `kerasseg`."""

from kerasseg_cli.app import main

if __name__ == "__main__":
    main()

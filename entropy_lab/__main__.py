"""`python -m entropy_lab` is the command line."""

from entropy_lab.cli import main

if __name__ == "__main__":
    main()

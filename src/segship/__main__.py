"""`python -m segship` is the same as `segship`."""

from segship.cli import main

if __name__ == "__main__":
    main()

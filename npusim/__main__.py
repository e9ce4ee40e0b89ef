"""`python -m npusim`: the command line, where the script is not on the path."""

from npusim.cli import main

main()

"""`python -m vpltool` is the same as `vpltool`."""

from vpltool.cli import main

main()

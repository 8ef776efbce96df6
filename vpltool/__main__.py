"""The program: `vpltool`, and `python -m vpltool`. Ctrl-C ends it from its first import on."""

import sys


def main() -> None:
    """Run the command line; see `vpltool.cli.main`, which takes a while to import."""
    try:
        from vpltool.cli import main as run

        run()
    except KeyboardInterrupt:
        # In the words of `cli`, which may not be there yet.
        print("error: interrupted; finished results are kept\n"
              "hint: run the same command again to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

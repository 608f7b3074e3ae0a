"""``atbook`` and ``python -m atbook``: the command line; where it lacks a package, the doctor, which needs none."""

import sys


def main() -> None:
    """Run the command line, or say what is missing and exit with code 2."""
    try:
        from atbook.cli import app
    except ImportError as error:
        from atbook.doctor import main as examine

        print(f"atbook: {error}; this is how things stand here:", file=sys.stderr)
        examine()
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()

"""`python -m collectord` and the console command."""

import sys

from collectord import cli


def main() -> None:
    sys.exit(cli.main())


if __name__ == "__main__":
    main()

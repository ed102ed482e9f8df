"""``python -m experiments COMMAND``: the entry to everything here that is more than one script."""

import sys

import tyro

from experiments.claims import claims

COMMANDS = {"claims": claims}


def main(args: list[str] | None = None) -> int:
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m experiments", args=args)


if __name__ == "__main__":
    sys.exit(main())

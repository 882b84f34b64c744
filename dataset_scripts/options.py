"""How the commands of this project spell their options: with underscores, as fields of a configuration are."""

import re

# The name of an option, without the dashes before it.
_OPTION = re.compile(r"(?<=^--)(?!checkpoints\.)[a-z][^=]*", re.IGNORECASE)


def underscored(arguments: list[str]) -> list[str]:
    """A command line whose options, `--num-samples=3` for instance, are spelled with underscores; values stay.

    What follows `--checkpoints.` is a name that the user chooses, so it stays too.
    """
    return [_OPTION.sub(lambda option: option[0].replace("-", "_"), argument) for argument in arguments]

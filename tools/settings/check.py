"""Looking at all that a file of settings says, without doing any of it."""

from __future__ import annotations

from kcap.tools.settings import verbs
from kcap.tools.settings.merged import FILAMENT, LOGGING, Merged


def check(found: Merged) -> int:
    """Look at every section of a file.

    Args:
        found: The file, without an environment.

    Returns:
        How many settings it has.

    Raises:
        BadInputError: Some are wrong: all sections are looked at first.
        KcapError: It can't be read.
    """
    count = 0
    with found.gathering():
        for name in found.sections:
            for path, command in verbs.commands((name,)) if verbs.is_verb(name) else ():
                count += len(found.entries(path, command, typed=True))
        for section in (FILAMENT, LOGGING):
            count += len(found.own(section))
        for _, _, options in found.sinks(resolve=False):
            count += 1 + len(options)
        count += len(found.transformers())
    return count

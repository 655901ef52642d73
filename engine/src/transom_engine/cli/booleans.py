"""Truth values behind flags, as Docker's users write them: ``--rm=true``, ``--internal=false``, ``-it=1``.

click's flags take no value. So a command line that may have one is spelled out before click reads it: a flag that is
said to be true stands there alone, one that is said to be false does not stand there, wherever it stood before.
"""

from __future__ import annotations

import click

_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}
"""What Go's strconv.ParseBool reads, and so docker."""


def spelled_out(context: click.Context, arguments: list[str]) -> list[str]:
    """Return the arguments of a command, and of those below it, without truth values behind flags.

    Raises:
        UsageError: a flag has another value.
    """
    command, line = context.command, _Line(context)
    rest = line.read(arguments)
    if isinstance(command, click.Group) and rest and rest[0] != "--":
        name, *rest = rest
        below = command.get_command(context, name)
        if below is not None:
            rest = spelled_out(click.Context(below, context, name, **below.context_settings), rest)
        rest.insert(0, name)
    return [word for _, word in line.words] + rest


class _Line:
    """The words of one command, each with the flag that it sets, if it does."""

    def __init__(self, context: click.Context) -> None:
        self.words: list[tuple[click.Option | None, str]] = []
        self._context = context
        options = [option for option in context.command.params if isinstance(option, click.Option)]
        self._known = {name: option for option in options for name in (*option.opts, *option.secondary_opts)}

    def read(self, arguments: list[str]) -> list[str]:
        """Take the command's words, and return what is not for its flags."""
        rest = [*arguments]
        while rest and rest[0] != "--":
            if rest[0][:1] != "-" or rest[0] == "-":
                if not self._context.allow_interspersed_args:
                    break
                self.words.append((None, rest.pop(0)))
            elif self._takes_next(rest.pop(0)) and rest:
                self.words.append((None, rest.pop(0)))
        return rest

    def _takes_next(self, word: str) -> bool:
        """Take a word of flags; say whether the one behind it is a flag's value."""
        name, equals, value = word.partition("=")
        names = [name] if name.startswith("--") else [f"-{letter}" for letter in name[1:]]
        for number, name in enumerate(names, 1):
            option = self._known.get(name)
            if option is None or not option.is_flag:  # its value is the rest of the word, or the next one
                short = name + word[number + 1 :].removeprefix("=")
                self.words.append((None, short if len(name) == 2 else word))
                return option is not None and not equals and number == len(names)
            self.words.append((option, name))
        if equals and option is not None:
            self._set(option, name, value)
        return False

    def _set(self, option: click.Option, name: str, value: str) -> None:
        if value not in _TRUE | _FALSE:
            text = f"invalid value {value!r} for the flag {name}: expected true or false"
            raise click.UsageError(text, self._context)
        if value in _FALSE:
            self.words = [(other, word) for other, word in self.words if other is not option]
            self.words += [(option, word) for word in option.secondary_opts[:1]]

"""Options whose value may be a secret: given as they are, or by a file that holds it, so that no process list shows it."""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from mechanicd.cli._output import fail

MOST_BYTES: Final = 65536
_BY_HAND: Final = ParameterSource.COMMANDLINE

Command = TypeVar("Command", bound=Callable[..., Any])


def or_by_file(option: str, name: str, variable: str, **settings: Any) -> Callable[[Command], Command]:
    """An option, and beside it the same one with `-file` at its end; the command gets one value.

    A variable of the environment names the file too; what stands on the command line comes first.

    Args:
        option: with its dashes.
        name: of the command's argument.
        variable: of the environment.
        settings: of the option, as `click.option` takes them.
    """
    by_file = f"{option}-file"

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            path = kwargs.pop(f"{name}_file")
            context = click.get_current_context()
            given, given_file = (context.get_parameter_source(each) is _BY_HAND for each in (name, f"{name}_file"))
            if given and given_file:
                raise click.UsageError(f"give {option} or {by_file}, not both")
            if path is not None and not given:
                kwargs[name] = read(path, by_file, kwargs.get("as_json", False))
            return command(*args, **kwargs)

        decorated: Any = wrapper
        file_help = f"A file that holds what {option} takes, which no process list shows then. [env: {variable}]"
        decorated = click.option(by_file, f"{name}_file", envvar=variable, metavar="FILE", help=file_help)(decorated)
        made: Command = click.option(option, name, **settings)(decorated)
        return made

    return decorate


def read(path: str, option: str, as_json: bool) -> str:
    """The one line that a file holds; its own text is never shown. Exits with SECRET_FILE_UNUSABLE where there is none."""
    try:
        with open(path, "rb") as file:
            found = file.read(MOST_BYTES + 1)
        text = found.decode().strip()
        wrong = "is longer than 64 KiB" if len(found) > MOST_BYTES else "is empty" if not text else ""
        wrong = wrong or ("has more than one line" if len(text.splitlines()) > 1 else "")
    except OSError as error:
        wrong = f"can't be read ({error.strerror})"
    except UnicodeDecodeError:
        wrong = "is no UTF-8"
    except ValueError:
        wrong = "is no path"
    if wrong:
        fail("SECRET_FILE_UNUSABLE", f"{option} {path}: the file {wrong}; it has to hold one line, the value itself", as_json)
    return text

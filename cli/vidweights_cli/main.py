"""`vidweights`: the group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading

import click

from vidweights import __version__
from vidweights.errors import OutputError, VidweightsError
from vidweights_cli.output import printable

# command: (module, what --help says of it); a command's module is imported when the command runs.
_COMMANDS = {
    "list": ("list", "The releases in the catalog, and which of them are on this machine."),
    "info": ("info", "What is known of one release: hashes, input, licence, accuracy, where it is kept."),
    "inspect": ("inspect", "Say what any checkpoint file is, and which release it equals."),
    "diff": ("diff", "Compare two checkpoints tensor by tensor, across dialects."),
    "port": ("port", "Port a released checkpoint into a finished folder, and prove that it matches."),
    "inflate": ("inflate", "Inflate 2D ImageNet weights into a 3D network, and prove that it computes the same."),
    "validate": ("validate", "Validate a finished folder again."),
    "push": ("push", "Publish a validated folder on a hub, in one commit."),
    "download": ("download", "Fetch published weights, every byte checked; carry them to a machine that is offline."),
}

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    the weights do not compute what the release computes, or two checkpoints differ
  2    a wrong argument
  3    weights, or a library that the job needs, cannot be had here
  4    a file is damaged, hostile, or not what it was taken for
  5    a checkpoint's tensors are not those of the network that was asked for
  6    the result could not be written
  7    nothing was published: it may not be, or the hub has changed or does not allow it
  130  interrupted
"""


class _Commands(click.Group):
    """Imports a command when it is called, so that `--help` stays fast."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"vidweights_cli.{_COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vidweights")
def group() -> None:
    """Pretrained weights for video networks, ported from their releases and proved to match them."""


def main() -> None:
    """Run the command line; the process leaves with one of the documented exit codes."""
    arguments = sys.argv[1:]
    for ending in ("SIGTERM", "SIGHUP"):  # they clean up as Ctrl-C does
        if hasattr(signal, ending):
            signal.signal(getattr(signal, ending), _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = group.main(arguments, prog_name="vidweights", standalone_mode=False) or 0
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _tell_as_json(error, error.format_message(), as_json="--json" in arguments)
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("vidweights: interrupted; nothing unfinished was left behind", err=True)
        sys.exit(130)
    except VidweightsError as error:
        _tell(error, as_json="--json" in arguments)
        sys.exit(error.exit_code)
    except SystemExit:
        code = 0  # what click raises here, and only then, is for a reader of its output that has gone
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _tell(OutputError(f"the system refused: {error}"), as_json="--json" in arguments)
        sys.exit(OutputError.exit_code)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    torch = sys.modules.get("torch")
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        # An exception inside torch's import can end in C++, which aborts the process before anything is cleaned up.
        again = threading.Timer(0.1, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt


def _tell_as_json(error: Exception, message: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"type": type(error).__name__, "message": message}}))


def _tell(error: VidweightsError, *, as_json: bool) -> None:
    _tell_as_json(error, str(error), as_json=as_json)
    click.echo(f"vidweights: {printable(str(error))}", err=True)

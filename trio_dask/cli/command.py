"""What all our command lines share: how they run, and one line for everything that is wrong with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from trio_dask.cli.options import ELSEWHERE, Program, is_given, notes, origins, place_of, read_configuration
from trio_dask.cli.stdout import complain, stdout_failed
from trio_dask.deploy.program_runner import Stopper, run_program
from trio_dask.errors import NoScheduler, UnavailableError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.processes.environment import raise_file_limit
from trio_dask.scheduler_file import find_scheduler

if TYPE_CHECKING:
    from trio_dask.security.credentials import CredentialSettings
    from trio_dask.security.security import TlsRole

MAX_MESSAGE = 300


def run_service(service: Callable[[], Awaitable[None]], *, origin: str = "", quiet: bool = False) -> int:
    """Run the service of the current command to its end, and give the exit status; see `run_program`."""
    context = click.get_current_context()
    for note in notes(context):
        click.echo(f"{context.command_path}: {note}", err=True)
    options = context.params
    raise_file_limit()
    return run_program(
        context.command_path,
        service,
        context.obj,
        debug=options["debug"],
        level=logging.WARNING if quiet else logging.INFO,
        log_format=options.get("log_format", "text"),
        log_file=options.get("log_file"),
        origin=origin,
    )


def find_scheduler_for(
    argument: str | None, scheduler_file: str | None, protocol: str | None = None, tls_cert: str | None = None
) -> tuple[str | None, str | None]:
    """The address that the current command connects to, or the scheduler file that has it, or will have it.

    An address without a scheme has that of `protocol`, or TLS if there is a certificate.

    Raises:
      UsageError: there is none, or it is no address of a scheduler.
      UnavailableError: the file cannot be read, or is no scheduler file.
    """
    from trio_dask.configuration import configured_scheduler

    context = click.get_current_context()
    if is_given(context, "scheduler_file"):
        only_one({"SCHEDULER": argument, "--scheduler-file": scheduler_file})
        return None, _checked_file(scheduler_file or "", "--scheduler-file")
    check = partial(_checked_address, protocol=protocol, has_certificates=tls_cert is not None)
    if argument:
        with naming("SCHEDULER"):
            return check(argument), None
    program = context.command.program if isinstance(context.command, Program) else None
    address, file = configured_scheduler(read_configuration(context), program or "client")
    if address is not None and address.texts:
        with naming(address.origin):
            return check(address.texts[0]), None
    if file is not None and file.texts:
        return None, _checked_file(file.texts[0], file.origin)
    name = context.command_path
    raise click.UsageError(f"no scheduler given; write {name} HOST:PORT, or give --scheduler-file FILE")


def _checked_file(path: str, origin: str) -> str:
    from trio_dask.comm.joining import wrong_address_in

    with suppress(NoScheduler), naming(origin):
        found = find_scheduler(None, path)
        try:
            _checked_address(found.address)
        except UsageError as error:
            raise wrong_address_in(path, error) from error
    return path


def check_protection(settings: CredentialSettings, role: TlsRole, address: str | None) -> None:
    """Refuse certificates that cannot be used, and an address that would be less protected than it has to be.


    Raises:
      UsageError: the message names the file, or the address and what it lacks.
    """
    from trio_dask.comm.addresses import parse_address
    from trio_dask.comm.endpoint import check_protection as check
    from trio_dask.security.credentials import find_tls

    _check_certificates(settings)
    tls = find_tls(settings, role)
    if tls is not None and tls.config is not None:
        tls.check()
    if address is not None:
        check(parse_address(address), tls, has_key=settings.auth)


def _check_certificates(settings: CredentialSettings) -> None:
    """Read each file for itself, so that a complaint names the option."""
    authority, certificate, key = settings.tls_ca_file, settings.tls_cert, settings.tls_key
    if authority is None and certificate is None and key is None:
        return
    from trio_dask.security import certificates

    for option, path, read in (
        ("--tls-ca-file", authority, certificates.read_authority),
        ("--tls-cert", certificate, certificates.read_certificate),
        ("--tls-key", key, certificates.read_key),
    ):
        if path is not None:
            with naming(option):
                read(path)
    if authority is None or certificate is None:
        missing, given = ("--tls-ca-file", "--tls-cert") if authority is None else ("--tls-cert", "--tls-ca-file")
        raise UsageError(f"{given if certificate or authority else '--tls-key'}: {missing} has to be given as well")


def _checked_address(text: str, protocol: str | None = None, *, has_certificates: bool = False) -> str:
    from trio_dask.comm.addresses import scheme_of_peers
    from trio_dask.comm.joining import scheduler_address

    address = scheduler_address(text, protocol, has_certificates=has_certificates)
    chosen = protocol if is_given(click.get_current_context(), "protocol") else None
    if chosen is not None and scheme_of_peers(chosen) != scheme_of_peers(address.scheme):
        raise UsageError(f"{address} is not reached by {chosen}; give the protocol once")
    if address.is_in_process:
        raise UsageError(f"{text!r} is an address inside another program; give that of a scheduler that listens")
    if not address.port:
        raise UsageError(f"{text!r}: no scheduler listens at port 0; give the port that it logs as it starts")
    return str(address)


def given_as(option: str) -> str:
    """Where the value of this option was given: the option itself, or a place in the configuration."""
    found = origins(click.get_current_context()).get(option.removeprefix("--").replace("-", "_"))
    return option if found is None else found.origin


@contextmanager
def naming(option: str) -> Generator[None]:
    """For the block: an error that does not name its option gets this name, or that of its place."""
    try:
        yield
    except NoScheduler:
        raise
    except (UsageError, UnavailableError) as error:
        kind = UsageError if isinstance(error, UsageError) else UnavailableError
        raise kind(f"{given_as(option)}: {error}", remedy=error.remedy) from error


def check_interface(name: str | None) -> None:
    """Raise `UnavailableError` if there is no network interface of this name with an address."""
    if name is not None:
        from trio_dask.comm.addresses import addresses_of_interface

        with naming("--interface"):
            addresses_of_interface(name)


def check_host_is_here(option: str, host: str) -> None:
    """Raise `UnavailableError` if this machine cannot listen at this host; the empty one stands for all interfaces."""
    if host:
        from trio_dask.comm import tcp

        with naming(option):
            tcp.check_host_is_here(host)


def check_different_files(options: dict[str, str | None]) -> None:
    """Refuse one file for two of these options, by name: the program would overwrite its own file."""
    seen: dict[str, str] = {}
    for name, path in options.items():
        if path is not None:
            other = seen.setdefault(os.path.realpath(path), name)
            if other != name:
                raise click.UsageError(f"{given_as(other)} and {given_as(name)}: both are {path!a}; give two files")


def only_one(options: dict[str, object]) -> None:
    """Refuse two of these options, by name: none, an empty text and 0 are as good as not given."""
    given = [given_as(name) for name, value in options.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]}: give only one of them")


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a click command and give the exit status. What is wrong with its options becomes one line on stderr.

    The object of the command's context is a `Stopper`. Signals are handled from here on: a request to stop while the
    options are still being read ends the program quietly.
    """
    stopper = Stopper()
    stopper.install()
    try:
        status: object = command.main(
            args=None if arguments is None else list(arguments), prog_name=name, standalone_mode=False, obj=stopper
        )
    except click.ClickException as exc:
        complain(name, f"{_shorten(_message(exc))} ({name} --help shows all options)")
        return ExitStatus.WRONG_USAGE
    except UsageError as exc:
        complain(name, _shorten(str(exc)))
        return ExitStatus.WRONG_USAGE
    except UnavailableError as exc:
        complain(name, _shorten(str(exc)))
        return ExitStatus.REFUSED
    except (click.Abort, KeyboardInterrupt):
        return ExitStatus.STOPPED
    except OSError as exc:  # from the help or version text: a pipe that nobody reads, a full disk
        return stdout_failed(name, exc)
    return status if isinstance(status, int) else ExitStatus.STOPPED


@contextmanager
def reading(
    command: click.Command, name: str, arguments: Sequence[str], *, elsewhere: bool = False
) -> Generator[click.Context]:
    """The options that these arguments give to a command, which is not run; perhaps for a machine `elsewhere`.

    Raises:
      UsageError: an argument is wrong.
    """
    try:
        with command.make_context(name, list(arguments), obj=ELSEWHERE if elsewhere else None) as context:
            yield context
    except click.ClickException as exc:
        raise UsageError(f"{name}: {_shorten(_message(exc))}") from exc


def _message(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter) and error.param is not None:
        param = error.param
        context = _context(error)
        name = place_of(param, context) if isinstance(param, click.Option) else param.human_readable_name
        return f"{name}: {error.message}"
    return error.format_message()


def _context(error: click.UsageError) -> click.Context:
    return error.ctx if error.ctx is not None else click.get_current_context()


def _shorten(text: str) -> str:
    """One printable line from a message that may quote a megabyte of input, or control codes for a terminal."""
    text = " ".join(text.split())
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 20]} ... {text[-15:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

"""The daemon: runs one switch from a config until a signal.

SIGTERM and SIGINT stop it cleanly. A data plane that has ended by itself ends it with an error. SIGHUP reads the config file again and takes the steps from the old
config to the new one; a file with faults changes nothing. Services of the file are supervised (`vsock.switch.services`). The daemon sends READY, RELOADING, STOPPING and
the watchdog's messages to systemd.
"""

import asyncio
import errno
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

from vsock.control.config import Config
from vsock.control.model import settings
from vsock.control.services import ServiceRecord
from vsock.control.steps import Change, Remove, steps
from vsock.errors import NoSuchGuest, TransportError, VsockError
from vsock.switch.notify import notify, watchdog_interval
from vsock.switch.services import Services
from vsock.switch.switch import Switch

if TYPE_CHECKING:
    from vsock.control.model import GuestSpec

__all__ = ["run"]

_log: Final = logging.getLogger("vsock.switch")
_LOOK_SECONDS: Final = 5.0
"""Time between two looks whether the data plane is there, in seconds, if systemd does not want to know more often."""
_ENDING_SECONDS: Final = 3.0
"""How long a starting daemon waits for one that is stopping in the same directory, in seconds."""


def run(config: Config, *, reload: Callable[[], Config] | None = None, level: str = "info") -> None:
    """Runs a switch until a signal ends it.

    Args:
        config: the config to start with.
        reload: reads the config again on SIGHUP; None if there is no config file.
        level: the level of the log on standard error.

    Raises:
        VsockError: the switch could not be started, or its data plane has ended by itself.
    """
    _log_to_stderr(level)
    asyncio.run(_Daemon(config, reload).run())


class _DaemonSwitch(Switch):
    _directory_option = "--runtime-dir"
    supervisor: Services

    def services(self) -> list[ServiceRecord]:
        return self.supervisor.records()


class _Daemon:
    def __init__(self, config: Config, reload: Callable[[], Config] | None) -> None:
        self._configured = config.guests
        self._sandbox = config.sandbox
        self._reload = reload
        self._switch = _DaemonSwitch(
            config.guests,
            runtime_dir=config.runtime_dir,
            control=True,
            sandbox=config.sandbox,
            **settings(config),
        )
        self._services = Services(self._switch.runtime_dir)
        self._switch.supervisor = self._services
        self._wanted_services = config.services
        self._over = asyncio.Event()
        self._failure: TransportError | None = None
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        readings: set[asyncio.Task[None]] = set()

        def read_again() -> None:
            readings.add(reading := loop.create_task(self._read_again()))
            reading.add_done_callback(readings.discard)

        loop.add_signal_handler(signal.SIGHUP, read_again)
        async with AsyncExitStack() as stack:
            await self._start(stack)
            await stack.enter_async_context(self._services)
            await self._services.become(self._wanted_services)
            _log.info("ready: runtime_dir=%s", self._switch.runtime_dir)
            notify("READY=1", f"STATUS={len(self._configured)} guests")
            watch = asyncio.create_task(self._watch())
            await self._over.wait()
            loop.remove_signal_handler(signal.SIGHUP)
            await asyncio.gather(*readings)
            watch.cancel()
            notify("STOPPING=1")
        if self._failure:
            raise self._failure
        _log.info("stopped")

    async def _start(self, stack: AsyncExitStack) -> None:
        """Start the switch, after waiting for one that is stopping in the same directory."""
        deadline = time.monotonic() + _ENDING_SECONDS
        is_said = False
        while True:
            try:
                await stack.enter_async_context(self._switch)
            except TransportError as error:
                is_in_use = error.errno == errno.EADDRINUSE
                if not is_in_use or time.monotonic() > deadline or self._over.is_set():
                    raise
                if not is_said:
                    _log.info("waiting, in case it is ending: %s", error.strerror)
                is_said = True
                await asyncio.sleep(0.05)
            else:
                return

    def _end(self, number: signal.Signals) -> None:
        _log.info("stopping: signal=%s", number.name)
        self._over.set()

    async def _watch(self) -> None:
        """Asks the data plane for a sign of life, and passes it on to systemd, which may restart one that gives none."""
        interval = watchdog_interval() or _LOOK_SECONDS
        while True:
            asking = asyncio.ensure_future(asyncio.to_thread(self._switch.info))
            while not (await asyncio.wait({asking}, timeout=interval))[0]:
                _log.error("the data plane has not answered for %.0f s", interval)
            try:
                await asking
            except RuntimeError as error:  # the node is there no more
                self._failure = TransportError(errno.EIO, f"the data plane is gone: {error}")
                self._over.set()
                return
            if watchdog_interval():
                notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    async def _read_again(self) -> None:
        if self._reload is None:
            _log.warning("SIGHUP: there is no config file to read again")
            return
        async with self._reading:
            # Removing a guest waits until it has received RST for its connections.
            config = await asyncio.to_thread(self._take, self._reload)
            if config and not self._over.is_set():
                await self._services.become(config.services)

    def _take(self, reload: Callable[[], Config]) -> Config | None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        config = None
        try:
            config = reload()
        except (VsockError, OSError) as error:
            for line in str(error).splitlines():
                _log.error("config not taken: %s", line)
        else:
            self._become(config)
        notify("READY=1")
        return config

    def _become(self, config: Config) -> None:
        """Takes the steps to a new config; guests that the control API has added stay."""
        if config.runtime_dir.absolute() != self._switch.runtime_dir:
            _log.warning("config: a new runtime_dir needs a restart of the switch")
        if config.sandbox != self._sandbox:
            _log.warning("config: another sandbox needs a restart of the switch")
        self._switch.change_settings(**settings(config))
        failed: list[GuestSpec] = []
        unchanged: list[GuestSpec] = []
        changes = steps(config.guests, self._configured)
        _log.info(
            "config read again: %s", f"{len(changes)} steps" if changes else "no guest changed"
        )
        for step in changes:
            try:
                if isinstance(step, Remove):
                    with suppress(NoSuchGuest):  # the control API has removed it
                        self._switch.remove_guest(step.guest.name)
                elif isinstance(step, Change):
                    self._change(step)
                else:
                    self._switch.add(step.guest)
            except (VsockError, OSError) as error:
                failed.append(step.guest)
                if isinstance(step, Change):
                    unchanged.append(step.before)
                _log.error("config: guest=%s not changed: %s", step.guest.name, error)
        # The next SIGHUP tries failed steps again.
        taken = [guest for guest in config.guests if guest not in failed]
        self._configured = (*taken, *unchanged)

    def _change(self, step: Change) -> None:
        guest = step.guest
        try:
            self._switch.change(guest)
        except NoSuchGuest:  # the control API has removed it
            self._switch.add(guest)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("vsock")
    logger.addHandler(handler)
    logger.setLevel(level.upper())

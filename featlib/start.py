"""Ray and the pools of a job, started in a thread while the driver does what needs no Ray."""

import signal
import sys
import threading
import time
from concurrent.futures import Future, wait
from types import FrameType
from typing import TYPE_CHECKING, Literal

from featlib.config import ExtractConfig
from featlib.pools import Pools, Sizes, plan_pools
from featlib.spec import Kind
from featlib.storage import Store

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel


_MB = 1 << 20
_MOST_START_S = 60.0
_one_at_a_time = threading.Lock()


class RayStart:
    """The start of Ray, once: begun early where it is sure to be needed, else when it is asked for.

    A local Ray takes five seconds, of which this process works less than one.
    """

    def __init__(self, config: ExtractConfig, models: "tuple[ResolvedModel, ...]", store: Store) -> None:
        self._config, self._models, self._store = config, models, store
        self._pools: Future[Pools] | None = None

    def begin(self) -> None:
        """Starts Ray in a thread; what goes wrong there is raised by ``pools``."""
        if self._pools is None:
            _exit_on_sigterm()
            self._pools = Future()
            threading.Thread(target=self._run, args=(self._pools,), name="featlib-ray", daemon=True).start()

    def _run(self, pools: "Future[Pools]") -> None:
        try:
            from featlib.nodes import is_connected

            with _one_at_a_time:  # a job that was refused may have left its start under way
                stood_before = is_connected()
                pools.set_result(self._start())
        except BaseException as error:  # noqa: BLE001 - raised again where the pools are asked for
            pools.set_exception(error)
            return
        if not stood_before:
            # Ray's processes ask the kernel to end with their parent, and to the kernel that is this thread.
            threading.Event().wait()

    def pools(self) -> tuple[Pools, float]:
        """The pools, and the seconds that this call had to wait for them.

        Raises:
            ConfigError: The layout cannot fit.
            StoppedError: The named cluster does not answer.
        """
        started = time.monotonic()
        self.begin()
        if self._pools is None:
            raise RuntimeError("Ray was not begun")
        return self._pools.result(), time.monotonic() - started

    def expected(self) -> Pools:
        """The pools as they are where this machine is all there is; asks no Ray."""
        from featlib.nodes import this_machine

        sizes = self._sizes()
        return plan_pools(this_machine(sizes), sizes, self._kinds(), self._flow(), self._network_mb())

    def wait(self) -> None:
        """Lets a start that is under way come to its end: a process that leaves in the middle of one may crash."""
        if self._pools is not None:
            wait([self._pools], _MOST_START_S)

    def _start(self) -> Pools:
        from featlib.nodes import join_or_start

        return join_or_start(
            self._config.ray_address,
            self._sizes(),
            self._kinds(),
            self._flow(),
            local_output=self._store.url if self._store.is_local else None,
            object_store_mb=self._config.object_store_mb,
            network_mb=self._network_mb(),
        )

    def _sizes(self) -> Sizes:
        c = self._config
        return Sizes(c.decode_workers, c.extract_workers, c.extract_threads, c.layout, c.device, c.flow_workers)

    def _kinds(self) -> dict[str, Kind]:
        return {m.label: m.input.kind for m in self._models}

    def _flow(self) -> Literal["none", "opencv", "network"]:
        from featlib.extractors.flow_method import flow_kind

        return flow_kind(m.input.flow_spec for m in self._models)

    def _network_mb(self) -> dict[str, float]:
        from featlib.extractors.weights import payload

        return {m.label: len(payload(m, self._store.options)) / _MB for m in self._models}


def _exit_on_sigterm() -> None:
    """As Ray itself does where it is started in the main thread: the processes it started end with this one."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)

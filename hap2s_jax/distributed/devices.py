"""Data parallelism: the only module that calls `jax.pmap` or `jax.distributed`.

A step is a pure function of ``(state, batch)`` that knows only the name of the devices' axis,
`AXIS`, over which it gathers and averages. This module runs it on any devices: through
`jax.pmap` on several, and on one through ``jax.jit(jax.vmap(step, axis_name=AXIS))`` over a single row,
which is the same program with the collectives in place but much faster on CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import inspect
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hap2s_jax.distributed import experimental, joining, signals
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.environment import usable_cores

AXIS = "devices"

# From glibc's malloc.h: how much may stay free at the end of the heap, and how many blocks may be mapped outside of it.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

Device = Any  # to a type checker jax.Device is a variable, no type

PyTree = Any


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Runs steps over devices, the batch split among them and everything else on each of them.

    Attributes:
      devices: all devices of the computation, those of every process included.
    """

    devices: tuple[Device, ...]

    @classmethod
    def create(cls, num_devices: int | None = None) -> DataParallel:
        """Takes the first `num_devices` devices, or all of them.

        Raises:
          UserError: if there are fewer devices than asked for, or several processes and not all are used.
        """
        # A process's devices must stand together: each process brings one contiguous share of the batch.
        devices = sorted(jax.devices(), key=lambda device: device.process_index)
        if devices[0].platform == "cpu":
            _keep_freed_memory()
        if num_devices is None or num_devices == len(devices):
            return cls(tuple(devices))
        if not 1 <= num_devices <= len(devices):
            raise UserError(
                f"num_devices is {num_devices}; it should be 1 to {len(devices)}, the number of "
                f"{devices[0].platform} devices"
            )
        if jax.process_count() > 1:
            raise UserError(
                f"num_devices is {num_devices}; it should be {len(devices)}, since several processes use all devices"
            )
        return cls(tuple(devices[:num_devices]))

    @property
    def local_devices(self) -> tuple[Device, ...]:
        """The devices that this process feeds."""
        return tuple(d for d in self.devices if d.process_index == jax.process_index())

    @property
    def is_lead(self) -> bool:
        """Whether this process writes logs and pictures."""
        return jax.process_index() == 0

    @property
    def must_wait(self) -> bool:
        """Whether each step must be waited for before the next is queued.

        Collectives of several CPU devices run on one thread pool and deadlock when steps pile up.
        """
        return self.devices[0].platform == "cpu" and len(self.devices) > 1

    def check_batch(self, batch_size: int, pieces: int = 1) -> None:
        """Raises a UserError unless `batch_size` images divide over the devices, and each share into `pieces`."""
        n = len(self.devices)
        if pieces < 1 or (batch_size % n == 0 and batch_size // n % pieces):
            raise UserError(
                f"batch.pieces is {pieces}; it should divide a device's share, {batch_size // n} images "
                f"({batch_size} over {n} devices)"
            )
        if batch_size % n:
            down, up = batch_size // n * n, -(-batch_size // n) * n
            near = f"{down} or {up}" if down else f"{up}"
            raise UserError(
                f"batch.classes x batch.images_per_class is {batch_size}; it should be {near}, to divide over "
                f"{n} devices; or set num_devices"
            )

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies `tree` to every local device, as `compile_step` needs its donated state."""
        return jax.device_put(tree, self._local_sharding(PartitionSpec()))

    def split(self, batch: PyTree) -> PyTree:
        """Makes ``[local devices, b / local devices, ...]`` of this process's arrays ``[b, ...]``, and places them."""
        n = len(self.local_devices)
        split = jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
        return jax.device_put(split, self._local_sharding(PartitionSpec(AXIS)))

    def compile_step(self, step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]) -> Callable[..., Any]:
        """Compiles ``step(state, batch) -> (state, metrics)``, the batch split over `AXIS` by `split`.

        The state is donated; state and metrics come out equal on all devices, which `step` must ensure by
        its collectives. On several CPU devices of one process, all calls must have the first one's shapes.
        """
        # Among several processes a compiled program takes other arguments than `jax.pmap`'s function.
        alone = jax.process_count() == 1
        options = experimental.step_options(self.devices[0].platform) if alone else {}
        if len(self.devices) == 1:
            over_row = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=AXIS)
            return jax.jit(over_row, donate_argnums=0, compiler_options=options)
        mapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=0,
            devices=self.devices,
        )
        return experimental.with_options(mapped, options) if options else mapped

    def compile_map(self, function: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
        """Compiles ``function(variables, batch)`` with rows in and rows out, split over the local devices.

        There is no communication, so that processes need not call it equally often. The batch's leading
        dimension must divide over the local devices; the result is a NumPy-like array ``[b, ...]``.
        """
        rows = self._local_sharding(PartitionSpec(AXIS))
        compiled = self.map_program(function)
        # With several processes jit takes no NumPy rows: it cannot know that each process has its own.
        return lambda variables, batch: compiled(variables, jax.device_put(batch, rows))

    def map_program(self, function: Callable[[PyTree, PyTree], PyTree]) -> Any:
        """The program of `compile_map`, as a `jax.jit` function."""
        whole, rows = self._local_sharding(PartitionSpec()), self._local_sharding(PartitionSpec(AXIS))
        if len(self.local_devices) > 1:
            # In a loop over rows (attention on a CPU) XLA's partitioner would let each device compute all rows.
            function = jax.shard_map(
                function,
                mesh=rows.mesh,
                in_specs=(whole.spec, rows.spec),
                out_specs=rows.spec,
                check_vma=False,
            )
        return jax.jit(function, in_shardings=(whole, rows), out_shardings=rows)

    def _local_sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(Mesh(np.asarray(self.local_devices), (AXIS,)), spec)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Concatenates the ``[b, ...]`` of all processes, equal in shape, to ``[processes * b, ...]``."""
        if jax.process_count() == 1:
            return rows
        return np.asarray(experimental.gather(rows, tiled=True))


def _keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed blocks instead of returning them to the kernel.

    XLA on a CPU takes the temporaries of each call from malloc and frees them after it, and a new page costs a fault.
    Blocks of more than 32 MiB are mapped, so their pages are new each time: 18,000 in a step of the main job on two
    devices, a fifth of its time. With all blocks in the heap it has 1,000, and trains 600 images a second, not 490, for
    13 % more memory at the peak (jax 0.12, two cores of an AMD EPYC, in turns).
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux with glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_MAX, 0)


def use_cores(batch_size: int, num_devices: int | None = None) -> None:
    """Splits the CPU into devices that share a batch, if JAX computes on it. Call it before anything else.

    A small encoder trains nearly twice as fast on two devices of one core each as on one device of two, because
    few of its operations are large enough to be worth splitting themselves. The results are equal up to rounding.
    Nothing happens when the devices are known already, were set by ``XLA_FLAGS`` or ``jax_num_cpu_devices``, or
    are shared with other processes.

    Args:
      batch_size: images in the global batch, which the devices must divide.
      num_devices: how many to make; by default one for each usable core, but with at least 16 images each.
    """
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or getattr(jax.config, "jax_num_cpu_devices", 0) > 0
        or jax.distributed.is_initialized()
    ):
        return
    if num_devices is None:
        most = min(usable_cores(), batch_size // 16)
        num_devices = max((n for n in range(1, most + 1) if batch_size % n == 0), default=1)
    # If it is too late for the setting, nothing breaks.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(num_devices, 1))


def expect_no_tpu() -> None:
    """Keeps libtpu, if installed without a TPU (for rehearsals), from searching Google's servers for one.

    The search would delay every start by many seconds and end in warnings. With a TPU nothing happens.
    """
    # Device files of TPU VMs: /dev/accel0 up to v4, /dev/vfio/0 later.
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(name, value)


def initialize_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_timeout: int = 300,
    peer_timeout: int = 60,
) -> None:
    """Joins this process to the others of a job. Call it before anything touches a device.

    Without arguments JAX finds out about TPU pods, SLURM, Open MPI and Kubernetes by itself.

    Args:
      coordinator: host:port of process 0.
      num_processes: how many there are.
      process_id: which of them this is.
      join_timeout: seconds in which all must have joined. After them the process says so and ends with exit
        code 1, since JAX itself would abort.
      peer_timeout: seconds without a sign of life after which a process counts as dead and the job ends;
        JAX's own 100 where its release takes no other.

    Raises:
      UserError: if the cluster cannot be found or the arguments do not fit together.
    """
    # Older releases of JAX have their own times.
    known = inspect.signature(jax.distributed.initialize).parameters
    # At the end the other processes wait for the lead, which draws pictures.
    times: dict[str, Any] = {"heartbeat_timeout_seconds": peer_timeout, "shutdown_timeout_seconds": 900}
    watchdog = threading.Timer(join_timeout, _give_up, (coordinator, num_processes, process_id, join_timeout))
    watchdog.daemon = True
    watchdog.start()
    try:
        if coordinator and num_processes is not None and process_id is not None:
            joining.agree(coordinator, num_processes, process_id, join_timeout)
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # JAX aborts with a stack trace when its own time is up; the watchdog's line comes first.
            initialization_timeout=join_timeout + 60,
            **{name: seconds for name, seconds in times.items() if name in known},
        )
    except UserError:
        raise
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"joining the other processes failed: {reason(e)}; on a TPU pod, SLURM, Open MPI or Kubernetes no "
            "argument is needed, elsewhere give coordinator address (host:port), number of processes and process id"
        ) from e
    finally:
        watchdog.cancel()


def _give_up(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> None:
    if process_id == 0:
        what = f"not all of the {num_processes} processes have joined the coordinator {coordinator}"
        remedy = "start the same command on every host, each with its own process id"
    else:
        what = f"no coordinator answered at {coordinator or 'the address that JAX found'}"
        remedy = "see that process 0 runs there and that its port can be reached from this host"
    print(f"error: after {seconds:g} s {what}; {remedy}", file=sys.stderr, flush=True)
    signals.end(1)

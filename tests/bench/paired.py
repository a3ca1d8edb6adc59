"""Ratios of two implementations on a machine that is not quiet.

Single timings of one loop differ by up to 1.7 times on a shared machine, the median of 21 interleaved ratios
by less than one per cent. So both arms run in one process, one right after the other, the order alternating,
and what counts is the median of the ratios of neighbours with its bootstrap 95 % interval. The arms' outputs
are compared in the same run.
"""

from __future__ import annotations

import math
import multiprocessing
import platform
import random
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]
Record = dict[str, Any]

PAUSE = 0.02  # seconds; the threads of an OpenMP runtime look for more work for a while after its last call
MIN_SECONDS = 2e-3  # of one timing; shorter calls are repeated
BOOTSTRAPS = 2000


def compare(
    name: str,
    ours: Run,
    peers: dict[str, Run],
    pairs: int = 21,
    check: Callable[[Any, Any], None] | None = None,
    floor_ms: float | None = None,
    warmup: int = 2,
) -> Record:
    """Time ``ours`` against each peer, print one line for each and return a record that JSON can hold.

    Args:
        name: the workload.
        ours: runs the workload once.
        peers: the same for others, by name.
        pairs: timings of either arm for each peer.
        check: called with both outputs before timing; raises where they differ.
        floor_ms: the least time the hardware allows, where it is known.
        warmup: untimed calls of either arm.

    Returns:
        name, device, torch's version, threads, pairs, floor_ms, and peers: by name, ours_ms and peer_ms
        (medians), ratio (how many times faster ours is), its interval low and high, cpu_ratio (the same from
        CPU time, that of worker processes too) and involuntary context switches of each arm, which tell how
        far the machine was shared.
    """
    record: Record = {
        "name": name,
        "device": device_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pairs": pairs,
        "floor_ms": floor_ms,
        "peers": {},
    }
    for peer_name, peer in peers.items():
        if check is not None:
            check(ours(), peer())
        result = _pairs((ours, peer), pairs, warmup)
        record["peers"][peer_name] = result
        share = "" if floor_ms is None else f"  floor {floor_ms:.3g} ms = {floor_ms / result['ours_ms']:.0%}"
        print(
            f"{name}: ours {result['ours_ms']:.3g} ms, {peer_name} {result['peer_ms']:.3g} ms, "
            f"{result['ratio']:.2f}x [{result['low']:.2f}, {result['high']:.2f}]{share}",
            flush=True,
        )
    return record


def device_name() -> str:
    """Return the GPU's name, or the processor's where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.processor()


def _pairs(arms: tuple[Run, Run], pairs: int, warmup: int) -> Record:
    repeats = [_repeats(arm, warmup) for arm in arms]
    wall: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    switches = [0, 0]
    for pair in range(pairs):
        for arm in (0, 1) if pair % 2 == 0 else (1, 0):
            time.sleep(PAUSE)
            seconds, cpu_seconds, switched = _time(arms[arm], repeats[arm])
            wall[arm].append(seconds / repeats[arm])
            cpu[arm].append(cpu_seconds / repeats[arm])
            switches[arm] += switched
    ratios = [theirs / own for own, theirs in zip(*wall, strict=True)]
    low, high = _interval(ratios)
    return {
        "ours_ms": statistics.median(wall[0]) * 1e3,
        "peer_ms": statistics.median(wall[1]) * 1e3,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "cpu_ratio": statistics.median(theirs / own for own, theirs in zip(*cpu, strict=True)),
        "switches": switches,
    }


def _repeats(run: Run, warmup: int) -> int:
    for _ in range(warmup):
        run()
    seconds = _time(run, 1)[0]
    if seconds < 1:
        seconds = min(seconds, *(_time(run, 1)[0] for _ in range(2)))
    return max(1, math.ceil(MIN_SECONDS / seconds))


def _time(run: Run, repeats: int) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and involuntary context switches of so many calls."""
    _synchronize()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    cpu, wall = _cpu_seconds(), time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronize()
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return wall, max(cpu, 1e-9), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its worker processes, by clock_getcpuclockid(3)."""
    workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid is not None]
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in workers)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _interval(ratios: list[float]) -> tuple[float, float]:
    """The bootstrap 95 % interval of the median."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(BOOTSTRAPS))
    return medians[int(0.025 * BOOTSTRAPS)], medians[int(0.975 * BOOTSTRAPS)]

"""What the benchmarks share: taking turns, facts about the machine, tables and where they go."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from polyptych.files import write_aside


def measure(
    tasks: dict[str, Callable[[], Any]],
    repeats: int,
    seconds: float,
    device: str = "cpu",
    summarize: Callable[[list[float]], float] = statistics.median,
) -> dict[str, dict[str, Any]]:
    """Wall and processor time in ms (and peak GPU memory); variants take turns.

    No turn begins after ``seconds`` once each variant has been measured twice: on two threads, a
    busy machine can slow everything tenfold.
    """
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    peak: dict[str, float] = {}
    begin = time.perf_counter()
    for turn in range(repeats + 1):
        if turn > 2 and time.perf_counter() - begin > seconds:
            break
        for name, task in tasks.items():
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start, start_cpu = time.perf_counter(), time.process_time()
            task()
            if device != "cpu":
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn:  # the first turn warms up
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - start_cpu))
    results = {}
    for name in tasks:
        results[name] = {
            "wall_ms": round(summarize(wall[name]), 2),
            "cpu_ms": round(summarize(cpu[name]), 2),
            "turns": len(cpu[name]),
            "cpu_ms_runs": [round(value, 2) for value in cpu[name]],
        }
        if name in peak:
            results[name]["peak_gib"] = round(peak[name], 2)
    return results


def peak_bytes(step: Callable[[], Any]) -> int:
    """What the allocator hands out in a step, at its peak, less what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def keep_freed_memory() -> None:
    """Let glibc use freed blocks again, whatever their size.

    Those above 32 MB are otherwise mapped anew each time, and zeroing their pages costs more than
    what is computed in them.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def machine(device: str, load: list[float]) -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, name).partition(":")[2].strip() or name
    facts = {
        "cpu": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_average_min_max": [round(min(load), 1), round(max(load), 1)],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def work_table(rows: list[dict[str, Any]], work: str, threads: int, clock: str) -> list[str]:
    """A table in Markdown: times by number of images, and how many times faster than the first."""
    times: dict[tuple[int, str], float] = {
        (row["images"], row["variant"]): row[clock]
        for row in rows
        if row["work"] == work and row["threads"] == threads
    }
    variants = list(dict.fromkeys(name for _, name in times))
    lines = [
        f"| {work}, images | " + " | ".join(variants) + " |",
        "| ---: " * (len(variants) + 1) + "|",
    ]
    for images in sorted({count for count, _ in times}):
        base = times[images, variants[0]]
        cells = [f"{base:.0f}"]
        for name in variants[1:]:
            cells.append(f"{times[images, name]:.0f} ({base / times[images, name]:.2f}×)")
        lines.append(f"| {images} | " + " | ".join(cells) + " |")
    return lines


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as file:
        json.dump(report, file, indent=1)
        file.write("\n")


def write_table(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``name:begin`` and ``name:end`` of a document."""
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    document = path.read_text()
    head, begin, rest = document.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise SystemExit(f"{path}: no {first} … {last}")
    with write_aside(path) as file:
        file.write(f"{head}{first}\n{text}\n{last}{tail}")

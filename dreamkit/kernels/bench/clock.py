"""Time and memory of calls on one device: CUDA events, CUDA graphs, and the allocator's peak."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import torch

FEWEST, MOST = 3, 300  # samples of a round
GRAPH_WARMUP = 3  # calls before one is captured, as torch's notes on CUDA graphs ask


class Clock:
    """Measures calls on `device` for about `seconds` each. On a CPU it is the wall clock, which only a trial uses."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.seconds = seconds
        self._is_capturing = False
        if self.is_cuda:
            torch.cuda.set_device(device)  # events, streams and graphs are those of the current one

    def samples(self, call: Callable[[], Any], parts: int = 1) -> list[float]:
        """Seconds of each of several calls, divided by the `parts` that a call consists of."""
        first = self._timed(call, 1)
        if first[0] < self.seconds:  # what takes longer is warm by itself, and dear
            first = self._timed(call, 1)
        count = min(MOST, max(FEWEST - 1, math.ceil(self.seconds / max(first[0], 1e-9))))
        return [seconds / parts for seconds in first + self._timed(call, count)]

    def _timed(self, call: Callable[[], Any], count: int) -> list[float]:
        if not self.is_cuda:
            times = []
            for _ in range(count):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return times
        marks = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)
        ]
        torch.cuda.synchronize(self.device)
        for start_mark, end_mark in marks:
            start_mark.record()
            call()
            end_mark.record()
        torch.cuda.synchronize(self.device)
        return [start_mark.elapsed_time(end_mark) / 1e3 for start_mark, end_mark in marks]

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call as one CUDA graph; on a CPU, the call."""
        if not self.is_cuda:
            return call
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARMUP):
                call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._is_capturing = True  # and stays so in all that torch keeps of it where an error comes
        with torch.cuda.graph(graph):
            call()
        self._is_capturing = False
        return graph.replay

    def is_sound(self) -> bool:
        """Whether anything can still be measured in this process, after an error."""
        if not self.is_cuda:
            return True
        try:
            torch.randn(1, device=self.device).item()
        except RuntimeError:
            return False
        return not self._is_capturing

    def peak_bytes(self, call: Callable[[], Any]) -> tuple[int, int]:
        """The most that is allocated during the call: above what was there before, and all in all."""
        if not self.is_cuda:
            call()
            return 0, 0
        self.free()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return peak - before, peak

    def free(self) -> None:
        """Gives back what nobody holds any more."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

"""Roofline times of forward passes from catalogue figures."""

from dataclasses import dataclass, field
from typing import Any

from simulator.core.errors import ComputeError
from simulator.pricing.catalogue import FP16_BYTES, Hardware, ModelShape, Runtime
from simulator.pricing.costs import Work
from simulator.pricing.op_counts import OpCount


@dataclass
class RooflineCosts:
    """Times of a model shape on given hardware by roofline. `extrapolated` is always False: a formula has no measured range."""

    shape: ModelShape
    op_counts: dict[str, OpCount]
    hardware: Hardware
    runtime: Runtime
    extrapolated: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the constants of the roofline once: a large run prices a million passes."""
        shape, start = self.shape, self.runtime
        self._weight_bytes = FP16_BYTES * shape.pass_parameters
        self._token_bytes = FP16_BYTES * shape.dim
        self._kv_bytes = shape.kv_bytes_per_position
        self._token_flops = 2 * (shape.n_layer * shape.layer_parameters - shape.modulation_parameters)
        self._row_flops = 2 * shape.modulation_parameters
        self._logit_flops = 2 * shape.head_parameters
        self._pair_flops = 4 * shape.n_layer * shape.dim
        self._logit_bytes = FP16_BYTES * shape.vocab_size * start.interval_passes * shape.interhead
        self._bytes_per_s, self._flop_per_s = self.hardware.bytes_per_s, self.hardware.flop_per_s
        self._alongside, self._serial = start.kind == "host", start.kind == "serial"
        if self._alongside:
            self._launch_s = (shape.n_layer * start.layer_us + start.step_us) * 1e-6
        else:
            self._launch_s = (
                shape.n_layer * start.kernels_per_layer + start.kernels_per_step
            ) * self.hardware.kernel_overhead_s

    @property
    def power_w(self) -> float:
        return self.hardware.power_w

    def pass_seconds(self, work: Work) -> float:
        """Return the seconds of one batched forward pass, by the formula at the top of `build.py`."""
        rows, tokens, kv_tokens, attended, logits = work
        read = self._weight_bytes + self._token_bytes * tokens + self._kv_bytes * kv_tokens + self._logit_bytes * logits
        flops = self._token_flops * tokens + self._logit_flops * logits + self._pair_flops * attended
        flops += self._row_flops * rows
        roof = self._roof(read, flops)
        return max(self._launch_s, roof) if self._alongside else self._launch_s + roof

    def compute_seconds(self, kind: str) -> float:
        """Return the seconds of one `Compute`. Raises ComputeError if the model has no operation count for it."""
        op_count = self.op_counts.get(kind)
        if op_count is None:
            known = ", ".join(self.op_counts) or "none"
            raise ComputeError(f"{self.shape.title} has no operation count of {kind}; known: {known}")
        read = FP16_BYTES * (op_count.parameters + op_count.activation_values)
        roof = self._roof(read, op_count.flops)
        if self._alongside:
            return max(op_count.kernels * self.runtime.kernel_us * 1e-6, roof)
        return op_count.kernels * self.hardware.kernel_overhead_s + roof

    def _roof(self, read: float, flops: float) -> float:
        memory_s, arithmetic_s = read / self._bytes_per_s, flops / self._flop_per_s
        return memory_s + arithmetic_s if self._serial else max(memory_s, arithmetic_s)

"""The time that a served model takes by a roofline: a product of m rows with n x k weights takes
max(2 m n k / operations, bytes / bandwidth), each with the share of it that kernels reach.

It gives an order of recipes, not a speed. What its figures come from, and how far off they were:

- Bandwidth: 0.8 of what the maker says at 16 bits (aiconfigurator's). Fewer bits reach less of it: each weight costs as
  much as reading `READING_BITS` more, by llama.cpp's own figures of F16 and Q8_0 (tools/quantize/README.md, of
  Llama-3.1-8B on one GPU that it does not name). They foretell its Q4_K_M within 11%, and its codebooks (IQ) not at
  all, so that types of GGUF have that table's own figures.
- Operations, and the cost of turning weights into 16 bits before they are multiplied: from NVIDIA's table of
  Llama-3.1-8B on an H200 (Model-Optimizer, examples/benchmark.md: TensorRT-LLM 0.15, 2048 tokens in, 128 out). Kernels
  differ: Marlin's authors report INT4 near its ideal speed up to 16-32 rows. What `bench` has measured goes before it.
- A kernel takes 3 µs to start (aiconfigurator's).

Left out are the products of attention and the traffic between GPUs, which are the same for every recipe.
"""

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from pipelines.core.strict_yaml import Frozen
from pipelines.formats.gguf_types import FileType
from pipelines.serving.hardware import Hardware, Numbers

READING_BITS = 1.55
"""Bits that the work on a weight costs beside reading it."""
SIXTEEN_BITS = 0.8
"""Share of the bandwidth that reading 16-bit weights reaches."""
OPERATIONS_SHARE: dict[Numbers, float] = {"16 bits": 0.6, "FP8": 0.45, "INT8": 0.45, "FP4": 0.45}
"""Share of its operations that a GPU reaches: NVIDIA's table at batch 64, in 16 bits and in FP8; of others no figure is
known, and FP8's is taken."""
UNPACKED_SHARE = 0.4
"""The same where weights are turned into 16 bits first: NVIDIA's INT4 at batch 8 and 64, each within 15%."""
UNPACKED_ROWS = 128
"""Rows that such a kernel computes at least, asked for or not, once they are more than `VECTOR_ROWS`."""
VECTOR_ROWS = 4
"""Rows up to which a kernel of its own unpacks weights while it waits for memory."""
LAYER_SECONDS = 14 * 3e-6
"""Seconds that a layer's kernels take to start, on a GPU."""
GGUF_RATES: dict[FileType, float] = {
    "Q8_0": 405, "Q6_K": 360, "Q5_K_M": 358, "Q4_K_M": 329, "IQ4_XS": 323, "IQ3_M": 247, "IQ2_M": 204,
}  # fmt: skip
"""GiB a second at which llama.cpp reads a model of this type: tokens/s times GiB, in its own table."""
F16_RATE = 436
"""The same of F16."""


class Measured(Frozen):
    """A speed that was measured on this hardware, of this model."""

    recipe: str | None
    """Name of the recipe; None of the unquantized baseline."""
    runtime: str
    concurrency: int
    """Requests at once."""
    tokens_per_second: float = Field(gt=0)
    """Tokens written a second, of all requests together."""
    bytes: int
    """Bytes of the weights that each step reads."""


class Rates(Frozen):
    """The share of the bandwidth that reading weights reaches, by their bits."""

    most: float = SIXTEEN_BITS * (16 + READING_BITS) / 16
    """Share that weights of many bits would reach."""
    reading_bits: float = READING_BITS

    def share(self, bits: float) -> float:
        """Return the share of the bandwidth at which weights of so many bits are read."""
        return self.most * bits / (bits + self.reading_bits)


PRIOR = Rates()


def fit(measured: Sequence[Measured], weights: int, bandwidth: float) -> Rates:
    """Return the rates by which a model of so many `weights`, read once for each token, took what was `measured` at one
    request at once, on hardware of this `bandwidth`: a line through seconds by bytes (least squares).

    Raises:
        ValueError: they are fewer than two, of the same bytes, or larger weights were not slower.
    """
    sizes = [float(one.bytes) for one in measured]
    slope, start = statistics.linear_regression(sizes, [1 / one.tokens_per_second for one in measured])
    if slope <= 0:
        raise ValueError("larger weights were not slower")
    return Rates(most=1 / slope / bandwidth, reading_bits=max(0.0, start / slope * 8 / weights))


class Weights(Frozen):
    """Weights of a model that are stored and multiplied in one way."""

    count: int
    """How many there are."""
    bytes: float
    share: float
    """Share of the bandwidth at which they are read."""
    numbers: Numbers = "16 bits"
    """Type of the numbers that are multiplied."""
    unpacked: bool = False
    """Whether they are turned into those first, by kernels that are not made for many rows."""
    active: float = 1.0
    """Share of them that one token is multiplied with: of a mixture's experts, those that it goes to."""


class Work(Frozen):
    """The work of a model on a token: the weights that it is multiplied with, and what is kept of it."""

    weights: tuple[Weights, ...]
    layers: int
    cache_bytes: float
    """Bytes of keys and values of a token, in all layers."""


class Traffic(Frozen):
    """Requests that are answered at once."""

    concurrency: int
    read: int
    """Tokens of each prompt."""
    written: int
    """Tokens of each answer."""

    @property
    def tokens(self) -> int:
        """Tokens that keys and values are held of."""
        return self.concurrency * (self.read + self.written)


class Times(Frozen):
    """The time that requests take, by the roofline."""

    prompt: float
    """Seconds of reading all prompts."""
    step: float
    """Seconds of writing one token of each answer."""
    traffic: Traffic

    @property
    def tokens_per_second(self) -> float:
        """Tokens written a second, of all requests together."""
        whole = self.prompt + self.traffic.written * self.step
        return self.traffic.concurrency * self.traffic.written / whole


def times(work: Work, hardware: Hardware, gpus: int, traffic: Traffic, rates: Rates = PRIOR) -> Times:
    """Return the time that `traffic` takes on so many `gpus`, which share all work alike."""
    start = 0.0 if hardware.is_cpu else LAYER_SECONDS * work.layers

    def products(rows: int) -> float:
        return start + sum(_product(one, hardware, rows) for one in work.weights) / gpus

    held = traffic.concurrency * (traffic.read + traffic.written / 2) * work.cache_bytes
    cache = held / (rates.share(16) * hardware.bandwidth * gpus)
    prompt = products(traffic.concurrency * traffic.read)
    return Times(prompt=prompt, step=products(traffic.concurrency) + cache, traffic=traffic)


def _product(weights: Weights, hardware: Hardware, rows: int) -> float:
    """Return the seconds of multiplying so many `rows` with `weights`."""
    share, read = OPERATIONS_SHARE[weights.numbers], min(1.0, rows * weights.active)
    if weights.unpacked and rows > VECTOR_ROWS:
        share, rows = UNPACKED_SHARE, math.ceil(rows / UNPACKED_ROWS) * UNPACKED_ROWS
    operations = 1.0 if hardware.is_cpu else share  # the probe of a processor says what it reaches
    computing = 2.0 * rows * weights.active * weights.count / (operations * hardware.operations[weights.numbers])
    return max(computing, read * weights.bytes / (weights.share * hardware.bandwidth))

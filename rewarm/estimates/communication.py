"""Communication of a training step on several GPUs, by arithmetic: bytes, and seconds of a model.

The model is divided into groups of parameters: each layer, and the root with the embeddings and
the last norm. With n GPUs, weights divided among m of them (`parallel.shard`), r = n / m copies,
and k microbatches, a step runs these collectives on a group of B bytes, all in fp32:

```
 all-gather      B among m      2 k for a layer (forward, backward), k for the root      m > 1
 reduce-scatter  B among m      k                                                        m > 1
 all-reduce      B / m among r  1, after the last microbatch                             r > 1
```
Each GPU of a ring of n sends B (n - 1) / n bytes in an all-gather or a reduce-scatter and twice
that in an all-reduce, which takes those bytes / the bus bandwidth (NVIDIA/nccl-tests,
doc/PERFORMANCE.md), and a latency for each step of the ring; an all-reduce between nodes is a tree.
A ring enters and leaves a node through as many network cards as it has GPUs there.

The bandwidths and latencies are assumptions, not measurements: see `LinkSpeeds`. How much of the
communication runs while the GPU computes is not known either, so that a step's time has two bounds:
the sum of both without any overlap, and the longer of the two with full overlap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rewarm.model.architecture import Architecture

_BYTES = 4  # of a weight or a gradient that is sent: fp32


class LinkSpeeds(NamedTuple):
    """Bandwidths in bytes/s and latencies in seconds; the defaults are those of H100 nodes."""

    node_gpus: int = 8
    """GPUs of a node."""
    node_bandwidth: float = 370e9
    """Bus bandwidth within a node: of 450 GB/s NVLink, what NCCL's protocol leaves
    (NVIDIA/nccl-tests, issue 212)."""
    network_bandwidth: float = 45e9
    """For each GPU between nodes: of a card of 400 Gb/s, a tenth less than its 50 GB/s (46 to 48
    in NVIDIA/nccl-tests, issue 290)."""
    node_latency: float = 3.4e-6
    """Of a step of a ring (NCCL's own tuning table, `hwLat`, ring, Simple, NVLink)."""
    network_latency: float = 14e-6
    """The same between nodes (NET)."""

    def nodes_of(self, gpus: int, stride: int, total: int) -> int:
        """Returns on how many nodes the GPUs 0, stride, 2 · stride, … of a run are."""
        span = gpus * stride
        if total <= self.node_gpus or self.node_gpus % span == 0:
            return 1
        return max(2, -(-span // self.node_gpus))


H100_LINKS = LinkSpeeds()


class Collective(NamedTuple):
    """Equal collectives of a step."""

    kind: Literal["all-gather", "reduce-scatter", "all-reduce"]
    times: int
    """How many of them a step has."""
    tensor_bytes: float
    """Of the whole tensor."""
    gpus: int
    """That take part."""
    nodes: int
    """On which they are."""

    @property
    def bytes_sent(self) -> float:
        """Bytes that each GPU sends in a step."""
        passes = 2 if self.kind == "all-reduce" else 1
        return self.times * passes * self.tensor_bytes * (self.gpus - 1) / self.gpus

    def seconds(self, links: LinkSpeeds) -> float:
        """Returns how long these collectives take, one after the other."""
        return self.bytes_sent / self._bandwidth(links) + self.times * self._latency(links)

    def _bandwidth(self, links: LinkSpeeds) -> float:
        if self.nodes == 1:
            return links.node_bandwidth
        gpus_per_node = max(1, self.gpus // self.nodes)
        return min(links.node_bandwidth, gpus_per_node * links.network_bandwidth)

    def _latency(self, links: LinkSpeeds) -> float:
        if self.kind == "all-reduce":
            node_steps = 2 * (max(1, self.gpus // self.nodes) - 1)
            network_steps = 2 * (self.nodes - 1).bit_length()  # a tree: ⌈log2 nodes⌉ up, then down
        else:
            node_steps, network_steps = self.gpus - self.nodes, self.nodes - 1
        return node_steps * links.node_latency + network_steps * links.network_latency


class Communication(NamedTuple):
    """What a GPU sends in a step, and how long that takes where nothing else runs."""

    bytes_sent: int
    seconds: float


def collectives_of_step(
    architecture: Architecture, *, gpus: int, shard: int, parts: int, links: LinkSpeeds = H100_LINKS
) -> list[Collective]:
    """Returns the collectives of a step; none for one GPU.

    Args:
        architecture: the model's.
        gpus: that share the run.
        shard: among how many of them the weights are divided.
        parts: microbatches that each of them runs.
        links: between the GPUs.
    """
    copies = gpus // shard
    shard_nodes = links.nodes_of(shard, 1, gpus)
    copy_nodes = links.nodes_of(copies, shard, gpus)
    collectives = []
    for groups, parameters, gathers in (
        (architecture.layers, architecture.layer_parameters, 2),
        (1, architecture.outer_parameters, 1),
    ):
        size, times = _BYTES * parameters, groups * parts
        if shard > 1:
            collectives += [
                Collective("all-gather", gathers * times, size, shard, shard_nodes),
                Collective("reduce-scatter", times, size, shard, shard_nodes),
            ]
        if copies > 1:
            collectives.append(Collective("all-reduce", groups, size / shard, copies, copy_nodes))
    return collectives


def communication_of_step(
    architecture: Architecture, *, gpus: int, shard: int, parts: int, links: LinkSpeeds = H100_LINKS
) -> Communication:
    """Returns the communication of a step; arguments as of `collectives_of_step`."""
    collectives = collectives_of_step(
        architecture, gpus=gpus, shard=shard, parts=parts, links=links
    )
    return Communication(
        round(sum(collective.bytes_sent for collective in collectives)),
        sum(collective.seconds(links) for collective in collectives),
    )

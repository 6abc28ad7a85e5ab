"""Memory of a training step on the device, by arithmetic on the architecture; no torch, no GPU.

Peak of a step, in bytes, for n tokens in a microbatch, P parameters, D hidden, F inside the MLP,
H heads, V embedding rows; h is 2 in bf16, fp16 and fp8, 4 in fp32:

```
 weights      4 P                          Adam moments   8 P         both all the time
 average      4 P                          only with `optimizer.ema`, all the time
 gradients    4 P                          while an earlier microbatch left some (accumulation > 1)
 copies       2 · parameters in matmuls    the matrices, rounded; none in fp32
 activations  n · layers · (4 D + h (9 D + 2 F) + 16 + 4 H)   saved for the backward pass, of which
                4 D         the layer's input (twice, if attention and MLP run one after the other)
                h 2 D       outputs of the two norms         16     their means and variances
                h 5 D       queries, keys and values packed; queries and keys rotated
                h 2 D       attention's output, and again in the order of the next matmul
                h 2 F       the MLP before and after its non-linearity
                4 H         attention's normalizers
              + n · (4 D + h D + 8)        the last norm
 logits       n · 12 V                     their log-softmax and two gradients, all in fp32
```
In fp8, the input of a layer's matmul is saved in 8 bits, 3 D + F less a token and layer, and so is
the copy of its matrix. The Triton kernels (`kernels: auto` on a GPU) read the layer's input as it
is, h D in place of 4 D, rotate queries and keys in place, h 2 D less a token and layer, and store
the logits of a chunk at once, this chunk's and the last one's: 2 · 2²⁸ · h at most, with the head's
gradient beside them in fp32, 4 V D, and n · h D.

The backward pass starts with the logits: then everything above is in memory at once. Compiling a
layer keeps the same: what a matmul of the backward pass reads is saved, not recomputed. (Compiled
PyTorch norms save h D of their input too; that is not counted.)

With `memory: lean` (model/activation_recompute.py) the logits, and after them one layer at a time,
are recomputed:

```
 activations  n · layers · (5 h D + 4 H)         its input, queries, keys, values, attention
              + n · (8 D + 8)                    the last norm
 copies       h · V · D                          the head's: each layer makes its own again
 logits       n · 4 D + 4 V D                    the gradients of the states and of the head, with
              + 12 · chunk                       a chunk's logits, 2²⁶ at most; or after them
              or 4 V D + h · chunk               the head's gradient of a chunk
 recomputed   n · (a layer as above + h F + 8 D) with its gradients, when the logits are freed; in
              + n · 4 D + h · (4 D² + 2 D F)     half precision with what is cast, its matrices too
```
That is 2 · layers · D · F FLOPs a token more, 7 % of those of Pythia-410M's step, 2 · layers · D²
where attention and MLP run one after the other, and with PyTorch kernels 2 · V · D for the head.

With several GPUs, of which m divide the weights (`parallel.shard`), for L parameters in a layer and
R in the embeddings and the last norm, which FSDP gathers and keeps until a microbatch ends:

```
 weights, gradients, Adam moments         their 1 / m
 gathered     4 R + 2 · 4 L               the root, a layer, and the next one
 unsharded    2 · (4 R + 4 L)             their gradients, and again as they are sent: at the end of
                                          the backward pass, when the activations are freed; m > 1
```
With m = 1 the weights are gathered too, by a copy; gradients are kept whole until the last
microbatch, then replaced by the reduced ones. The rounded copies of all layers are whole on every
GPU, whatever m is: the backward pass reads them. NCCL's own buffers are not counted.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes
from rewarm.recipe.batch_split import split_batch
from rewarm.recipe.recipe import Recipe


class MemoryEstimate(BaseModel):
    """Bytes on the device at the peak of a step."""

    model_config = ConfigDict(populate_by_name=True)

    weights: int
    gradients: int
    moments: int
    average: int = 0
    """The average of the weights (`optimizer.ema`)."""
    copies: int
    """The weights as matmuls read them: in half precision, or 8 bits."""
    activations: int
    logits: int
    recomputed: int = Field(0, alias="again")
    """What `memory: lean` recomputes of a layer, when the logits are freed."""
    gathered: int = 0
    """Weights that FSDP has gathered on this GPU."""
    unsharded: int = 0
    """Gradients that FSDP has not divided yet, and their copy that is sent."""
    accumulates: bool
    """Whether gradients are in memory while a microbatch runs."""

    @property
    def resting(self) -> int:
        """Weights, their average, gradients and Adam moments."""
        return self.weights + self.average + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The most that is in memory at once."""
        return sum(self.at_peak().values())

    def at_peak(self) -> dict[str, int]:
        """Returns what is in memory at the peak, by name, in bytes."""
        transient = {"rounded weights": self.copies, "activations": self.activations}
        if self.copies + self.logits >= self.recomputed:
            transient["logits"] = self.logits
        else:
            transient = {"activations": self.activations, "recomputed": self.recomputed}
        gradients = {"gradients of whole layers": self.unsharded}
        always = {"weights, gradients, optimizer state": self.resting - self.average}
        if not self.accumulates:
            # Gradients grow as activations are freed: the peak is at one end of the backward pass.
            always = {"weights, optimizer state": self.weights + self.moments}
            gradients = {"gradients": self.gradients, **gradients}
        largest = max(transient, gradients, key=lambda parts: sum(parts.values()))
        if self.average:
            always["averaged weights"] = self.average
        return {**always, "gathered weights": self.gathered, **largest}

    def as_text(self, device: str) -> str:
        """Returns the estimate as one line: a sum.

        Args:
            device: what it is for: `a CPU`, `a GPU`.
        """
        parts = [f"{format_bytes(size)} {name}" for name, size in self.at_peak().items() if size]
        return f"{format_bytes(self.peak)} at the peak on {device}: {' + '.join(parts)}"


# Logits that are stored at once, repeated here because this module does not import torch.
_CHUNK = 2**28  # by the Triton kernels
_LEAN_CHUNK = 2**26  # with `memory: lean`


def estimate_recipe_memory(
    recipe: Recipe,
    architecture: Architecture,
    *,
    triton: bool,
    lean: bool | None = None,
    gpus: int = 1,
    shard: int | None = None,
) -> MemoryEstimate:
    """Returns the memory of a step of a recipe; of one sequence where `microbatch` is auto.

    Args:
        recipe: the run's.
        architecture: the model's.
        triton: whether the Triton kernels are used.
        lean: whether with `memory: lean`; None for as the recipe says.
        gpus: that share the run.
        shard: among how many of them the weights are divided; None for as the recipe says.
    """
    if shard is None:
        shard = recipe.parallel.shard_size(gpus) if gpus > 1 else 1
    split = split_batch(recipe.sequences_per_step, gpus, recipe.batch.microbatch or 1)
    return estimate_step_memory(
        architecture,
        tokens=split.microbatch * recipe.data.context,
        accumulates=split.parts > 1,
        precision=recipe.precision,
        triton=triton,
        lean=recipe.memory == "lean" if lean is None else lean,
        gpus=gpus,
        shard=shard,
        averages=recipe.optimizer.ema is not None,
    )


def estimate_step_memory(
    architecture: Architecture,
    *,
    tokens: int,
    accumulates: bool,
    precision: str,
    triton: bool = False,
    lean: bool = False,
    gpus: int = 1,
    shard: int = 1,
    averages: bool = False,
) -> MemoryEstimate:
    """Returns the memory of a step: the sum at the head of this file.

    Args:
        architecture: the model's.
        tokens: in a microbatch.
        accumulates: whether a step has more than one microbatch.
        precision: of the recipe.
        triton: whether the Triton kernels are used.
        lean: whether a part of the activations is recomputed.
        gpus: that share the run.
        shard: among how many of them weights, gradients and Adam moments are divided.
        averages: whether an average of the weights is kept.
    """
    D, F, V = architecture.hidden, architecture.inner, architecture.vocabulary
    # Bytes of a stored number, of its rounded copy, and of a number that a layer's matmul reads.
    h, cast = (4, 0) if precision == "fp32" else (2, 2)
    operand = 1 if precision == "fp8" else h
    stream = h if triton else 4  # of a number of the residual stream, as a layer saves it
    streams = 1 if architecture.parallel_residual else 2
    others = 4 if triton else 6
    layer = stream * D * streams + operand * (3 * D + F) + h * (others * D + F)
    layer += 16 + 4 * architecture.heads
    logits = tokens * 12 * V
    if triton:
        logits = 2 * h * min(_CHUNK, tokens * V) + 4 * V * D + tokens * h * D
    last_norm = 4 * D + h * D + 8
    matrices = 4 * D**2 + 2 * D * F
    copies = min(operand, cast) * architecture.layers * matrices + cast * V * D
    recomputed = 0
    if lean:
        whole_layer, layer = layer, h * 5 * D + 4 * architecture.heads
        copies = cast * V * D
        if not triton:
            last_norm = 8 * D + 8
            logits = _lean_logits(tokens, D, V, h)
        recomputed = tokens * (whole_layer - layer + h * F + 2 * stream * D - last_norm)
        recomputed += tokens * 2 * cast * D + cast * matrices + (0 if accumulates else 4 * V * D)
    held = -(-architecture.parameters // shard)
    root, one_layer = 4 * architecture.outer_parameters, 4 * architecture.layer_parameters
    return MemoryEstimate(
        weights=4 * held,
        gradients=4 * held,
        moments=8 * held,
        average=4 * held if averages else 0,
        copies=copies,
        activations=tokens * (architecture.layers * layer + last_norm),
        logits=logits,
        recomputed=recomputed,
        gathered=root + 2 * one_layer if gpus > 1 else 0,
        unsharded=2 * (root + one_layer) if shard > 1 else 0,
        accumulates=accumulates,
    )


def _lean_logits(tokens: int, D: int, V: int, h: int) -> int:
    """Returns the bytes of the loss in chunks, with the gradients of states and head."""
    rows = min(1 << max(0, (_LEAN_CHUNK // V).bit_length() - 1), tokens)
    chunk = rows * V
    bytes_ = max(12 * chunk, 4 * V * D + h * chunk) + tokens * 4 * D
    return bytes_ + (4 * V * D if rows < tokens else 0)

"""What a step takes up on the device, by arithmetic on the shape; no torch, no GPU.

Peak of a step, in bytes, for n tokens in a microbatch, P parameters, D hidden, F inside the MLP,
H heads, V embedding rows; h is 2 in bf16, fp16 and fp8, 4 in fp32:

```
 weights      4 P                          moments      8 P           both all the time
 gradients    4 P                          while a microbatch before left some (accumulation > 1)
 copies       2 · products                 the matrices, rounded; none in fp32
 activations  n · layers · (4 D + h (9 D + 2 F) + 16 + 4 H)   kept for the way back, of which
                4 D         the layer's input (twice, if attention and MLP stand in a row)
                h 2 D       what the two norms gave          16     their means and variances
                h 5 D       queries, keys and values as one product; queries and keys turned
                h 2 D       what attention gave, and again in the order of the next product
                h 2 F       the MLP before and behind its non-linearity
                4 H         attention's normalisers
              + n · (4 D + h D + 8)        the last norm
 logits       n · 12 V                     their log-softmax and two gradients, all in fp32
```
In fp8, what a layer's product reads is kept in 8 bits, 3 D + F less a token and layer, and so is
the copy of its matrix. The Triton kernels (`kernels: auto` on a GPU) read the layer's input as it
is, h D in place of 4 D, turn queries and keys in place, h 2 D less a token and layer, and store the
logits of a chunk at once, this one's and the last one's: 2 · 2²⁸ · h at most, with the head's
gradient beside them in fp32, 4 V D, and n · h D.

The way back begins with the logits: then everything above is there at once. Compiling a layer keeps
the same: what a product of the way back reads is kept, not computed again. (Compiled plain norms
keep h D of their input too; that is not counted.)

With `memory: lean` (lean.py) the logits, and after them a layer at a time, are made again:

```
 activations  n · layers · (5 h D + 4 H)         its input, queries, keys, values, attention
              + n · (8 D + 8)                    the last norm
 copies       h · V · D                          the head's: each layer makes its own anew
 logits       n · 4 D + 4 V D                    the gradients of the states and of the head, with
              + 12 · chunk                       a chunk's logits, 2²⁶ at most; or behind them
              or 4 V D + h · chunk               the head's gradient of a chunk
 again        n · (a layer as above + h F + 8 D) with its gradients, when the logits are gone; in
              + n · 4 D + h · (4 D² + 2 D F)     half precision with what is cast, its matrices too
```
That is 2 · layers · D · F FLOPs a token more, 7 % of those of Pythia-410M's step, 2 · layers · D²
where attention and MLP stand in a row, and with plain kernels 2 · V · D for the head.
"""

from __future__ import annotations

from pydantic import BaseModel

from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes
from rewarm.recipe.recipe import Recipe


class MemoryEstimate(BaseModel):
    """Bytes on the device at the peak of a step."""

    weights: int
    gradients: int
    moments: int
    copies: int
    """The weights as products read them: in half precision, or 8 bits."""
    activations: int
    logits: int
    again: int = 0
    """What `memory: lean` makes again of a layer, when the logits are gone."""
    accumulates: bool
    """Whether gradients are there while a microbatch runs."""

    @property
    def resting(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The most that is there at once."""
        passing = self.activations + max(self.copies + self.logits, self.again)
        if self.accumulates:
            return self.resting + passing
        # The gradients come as the rest goes: one end of the way back is its peak.
        return self.weights + self.moments + max(self.gradients, passing)

    def in_words(self) -> str:
        """Returns a line for a person."""
        copies = f" + {format_bytes(self.copies)} rounded weights" if self.copies else ""
        again = f", then {format_bytes(self.again)} made again" if self.again else ""
        return (
            f"{format_bytes(self.peak)} at the peak: {format_bytes(self.resting)} weights, "
            f"gradients, moments{copies} + {format_bytes(self.activations)} activations + "
            f"{format_bytes(self.logits)} logits{again}"
        )


# Logits that are stored at once; said here, above the torch line, again.
_CHUNK = 2**28  # by the kernels
_LEAN_CHUNK = 2**26


def estimate_recipe_memory(
    recipe: Recipe, shape: Architecture, *, triton: bool, lean: bool | None = None
) -> MemoryEstimate:
    """Returns what a step of a recipe takes up; of one sequence where `microbatch` is auto.

    Args:
        recipe: the run's.
        shape: the model's.
        triton: whether the Triton kernels are used.
        lean: with `memory: lean`, or without; None for as the recipe says.
    """
    microbatch = recipe.batch.microbatch or 1
    return estimate_step_memory(
        shape,
        tokens=microbatch * recipe.data.context,
        accumulates=recipe.sequences > microbatch,
        precision=recipe.precision,
        triton=triton,
        lean=recipe.memory == "lean" if lean is None else lean,
    )


def estimate_step_memory(
    shape: Architecture,
    *,
    tokens: int,
    accumulates: bool,
    precision: str,
    triton: bool = False,
    lean: bool = False,
) -> MemoryEstimate:
    """Returns what a step takes up: the sum that stands at the head of this file.

    Args:
        shape: the model's.
        tokens: in a microbatch.
        accumulates: whether a step has more than one.
        precision: of the recipe.
        triton: whether the Triton kernels are used.
        lean: whether a part is made again.
    """
    width, inner, head = shape.hidden, shape.inner, shape.vocabulary * shape.hidden
    size, cast = (4, 0) if precision == "fp32" else (2, 2)  # bytes of a number, and of one cast
    read = 1 if precision == "fp8" else size  # ... and of one that a layer's product reads
    streams = 1 if shape.parallel_residual else 2
    others = 4 if triton else 6
    stream = size if triton else 4
    layer = stream * width * streams + read * (3 * width + inner) + size * (others * width + inner)
    layer += 16 + 4 * shape.heads
    logits = tokens * 12 * shape.vocabulary
    if triton:
        chunks = 2 * size * min(_CHUNK, tokens * shape.vocabulary)
        logits = chunks + 4 * head + tokens * size * width
    last = 4 * width + size * width + 8
    matrices, again = 4 * width**2 + 2 * width * inner, 0
    copies = min(read, cast) * shape.layers * matrices + cast * head
    if lean:
        whole, layer = layer, size * 5 * width + 4 * shape.heads
        copies = cast * head
        if not triton:
            last = 8 * width + 8
            rows = min(1 << max(0, (_LEAN_CHUNK // shape.vocabulary).bit_length() - 1), tokens)
            chunk = rows * shape.vocabulary
            logits = max(12 * chunk, 4 * head + size * chunk) + tokens * 4 * width
            logits += 4 * head if rows < tokens else 0
        again = tokens * (whole - layer + size * inner + 2 * stream * width - last)
        again += tokens * 2 * cast * width + cast * matrices + (0 if accumulates else 4 * head)
    return MemoryEstimate(
        weights=4 * shape.parameters,
        gradients=4 * shape.parameters,
        moments=8 * shape.parameters,
        copies=copies,
        activations=tokens * (shape.layers * layer + last),
        logits=logits,
        again=again,
        accumulates=accumulates,
    )

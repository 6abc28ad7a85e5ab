"""What a step takes up on the device, by arithmetic on the shape; no torch, no GPU.

Peak of a step, in bytes, for n tokens in a microbatch, P parameters, D hidden, F inside the MLP,
H heads, V embedding rows; h is 2 in bf16 and fp16, 4 in fp32:

```
 weights      4 P                          moments      8 P           both all the time
 gradients    4 P                          while a microbatch before left some (accumulation > 1)
 copies       2 · products                 the matrices in half precision; none in fp32
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
The Triton kernels (`kernels: auto` on a GPU) turn queries and keys in place, h 2 D less a token and
layer, and store the logits of a chunk at once, this one's and the last one's: 2 · 2²⁸ · h at most,
with the head's gradient beside them, in fp32 and of a chunk, (4 + h) · V · D, and n · h D.

The way back begins with the logits: then everything above is there at once. Compiling a layer keeps
the same: what a product of the way back reads is kept, not computed again.
"""

from __future__ import annotations

from pydantic import BaseModel

from rewarm.architecture import Architecture
from rewarm.quantities import in_bytes
from rewarm.recipe import Recipe


class Memory(BaseModel):
    """Bytes on the device at the peak of a step."""

    weights: int
    gradients: int
    moments: int
    copies: int
    """The weights in half precision."""
    activations: int
    logits: int
    accumulates: bool
    """Whether gradients are there while a microbatch runs."""

    @property
    def resting(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The most that is there at once."""
        passing = self.copies + self.activations + self.logits
        if self.accumulates:
            return self.resting + passing
        # The gradients come as the rest goes: one end of the way back is its peak.
        return self.weights + self.moments + max(self.gradients, passing)

    def in_words(self) -> str:
        """Returns a line for a person."""
        copies = f" + {in_bytes(self.copies)} weights in half precision" if self.copies else ""
        return (
            f"{in_bytes(self.peak)} at the peak: {in_bytes(self.resting)} weights, gradients, "
            f"moments{copies} + {in_bytes(self.activations)} activations + "
            f"{in_bytes(self.logits)} logits"
        )


_CHUNK = 2**28  # logits that the kernels store at once; said here, above the torch line, again


def of_recipe(recipe: Recipe, shape: Architecture, *, triton: bool) -> Memory:
    """Returns what a step of a recipe takes up; of one sequence where `microbatch` is auto."""
    microbatch = recipe.batch.microbatch or 1
    return of_step(
        shape,
        tokens=microbatch * recipe.data.context,
        accumulates=recipe.sequences > microbatch,
        size=4 if recipe.precision == "fp32" else 2,
        triton=triton,
    )


def of_step(
    shape: Architecture, *, tokens: int, accumulates: bool, size: int, triton: bool = False
) -> Memory:
    """Returns what a step takes up: the sum that stands at the head of this file.

    Args:
        shape: the model's.
        tokens: in a microbatch.
        accumulates: whether a step has more than one.
        size: bytes of a number in a product.
        triton: whether the Triton kernels are used.
    """
    width, inner = shape.hidden, shape.inner
    streams = 1 if shape.parallel_residual else 2
    kept = 7 if triton else 9
    layer = 4 * width * streams + size * (kept * width + 2 * inner) + 16 + 4 * shape.heads
    logits = tokens * 12 * shape.vocabulary
    if triton:
        chunks = 2 * size * min(_CHUNK, tokens * shape.vocabulary)
        logits = chunks + (4 + size) * shape.vocabulary * width + tokens * size * width
    last = 4 * width + size * width + 8
    products = shape.layers * (4 * width**2 + 2 * width * inner) + shape.vocabulary * width
    return Memory(
        weights=4 * shape.parameters,
        gradients=4 * shape.parameters,
        moments=8 * shape.parameters,
        copies=0 if size == 4 else size * products,
        activations=tokens * (shape.layers * layer + last),
        logits=logits,
        accumulates=accumulates,
    )

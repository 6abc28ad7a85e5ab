"""A torch.compile backend that partitions layers as inductor does, without generating code."""

import pytest
from functorch.compile import min_cut_rematerialization_partition, nop

compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def graphs(compiler=nop):
    """A backend that partitions forward and backward as inductor does, and runs both eagerly."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    return aot_autograd(
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
        decompositions=select_decomp_table(),
    )

"""The sharding table: which mesh axes split which parameter, decided by its path."""

from __future__ import annotations

import re

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.data.batching.chunk_arrays import Chunks
from afmrl_jax.parallel.layout import fit_spec
from afmrl_jax.parallel.param_paths import NORM, is_stacked
from afmrl_jax.runtime.distributed import to_devices
from afmrl_jax.types import PyTree

# Maps by how their kernels are split, for the lines of adapters.
ROWS_STORED = r"attn/qkv|blocks/mlp/(gate_proj|up_proj)"
COLUMNS_STORED = r"/attn/proj|blocks/mlp/down_proj"
WIDENING = (
    r"self_attn/[qkv]_proj|mlp/(gate_proj|up_proj|(linear_)?fc1)|merger(_list)?/(mlp_0|linear_fc1)"
)
NARROWING = r"self_attn/o_proj|mlp/(down_proj|(linear_)?fc2)|merger(_list)?/(mlp_2|linear_fc2)"

# The lines speak of one layer; a stack has the layers along a further first axis, which stays
# whole, for the loop over layers walks along it.
# Searched in a leaf's path, first match wins. The trees of the optimizer repeat the parameters'
# paths, so their moments find the same line.
TABLE: tuple[tuple[str, P], ...] = (
    # The gradient of a lookup is summed over the batch: split both ways, no device holds it whole.
    (r"embed_tokens$", P("model", "data")),
    # Logits come out split by vocabulary, the longest axis there is.
    (r"lm_head$", P("data", "model")),
    # Query, key and value columns are whole heads, and heads are independent.
    (r"self_attn/[qkv]_proj/kernel$", P("data", "model")),
    # A bias lies like the columns it is added to.
    (r"self_attn/[qkv]_proj/bias$", P("model")),
    # Takes split heads in and sums them out: one all-reduce for each attention.
    (r"self_attn/o_proj/kernel$", P("model", "data")),
    # q, k and v fused in one kernel: an even cut of the columns would not fall between heads, so
    # only storage is split, as in FSDP.
    (r"attn/qkv/kernel$", P(("data", "model"), None)),
    # Whole, like the columns of the fused kernel.
    (r"attn/qkv/bias$", P()),
    # Heads arrive whole: storage again.
    (r"attn/proj/kernel$", P(None, ("data", "model"))),
    # Small, and added after the heads are joined.
    (r"attn/proj/bias$", P()),
    # Qwen2.5-VL's vision MLP has 3420 hidden units, which a model axis of 8 does not divide: only
    # storage is split, rows of the widening side ...
    (r"blocks/mlp/(gate_proj|up_proj)/kernel$", P(("data", "model"), None)),
    # ... whole biases ...
    (r"blocks/mlp/(gate_proj|up_proj)/bias$", P()),
    # ... and columns of the narrowing side.
    (r"blocks/mlp/down_proj/kernel$", P(None, ("data", "model"))),
    # Hidden units of an MLP are independent: the widening side splits its columns ...
    (r"mlp/(gate_proj|up_proj|(linear_)?fc1)/kernel$", P("data", "model")),
    # ... its bias with them ...
    (r"mlp/(linear_)?fc1/bias$", P("model")),
    # ... and the narrowing side sums over them.
    (r"mlp/(down_proj|(linear_)?fc2)/kernel$", P("model", "data")),
    # Added once to the sum, so not split.
    (r"mlp/(down_proj|(linear_)?fc2)/bias$", P()),
    # The merger is an MLP too: widening ...
    (r"merger(_list)?/(mlp_0|linear_fc1)/kernel$", P("data", "model")),
    # ... its bias with it ...
    (r"merger(_list)?/(mlp_0|linear_fc1)/bias$", P("model")),
    # ... narrowing to the decoder's width ...
    (r"merger(_list)?/(mlp_2|linear_fc2)/kernel$", P("model", "data")),
    # ... and the bias of the sum.
    (r"merger(_list)?/(mlp_2|linear_fc2)/bias$", P()),
    # The numbers of a patch (1176 in Qwen) rarely divide; the columns do.
    (r"patch_embed/proj/kernel$", P(None, ("data", "model"))),
    # Small, and added to whole vectors.
    (r"patch_embed/proj/bias$", P()),
    # A few megabytes, looked up by every picture.
    (r"pos_embed$", P()),
    # An adapter lies like the kernel beside it; its rank is too small to split. First those of
    # the tower's maps whose storage alone is split, by rows ...
    (rf"({ROWS_STORED})/lora_a$", P(("data", "model"), None)),
    (rf"({ROWS_STORED})/lora_(b|magnitude)$", P()),
    # ... and by columns, ...
    (rf"({COLUMNS_STORED})/lora_(a|magnitude)$", P()),
    (rf"({COLUMNS_STORED})/lora_b$", P(None, ("data", "model"))),
    # ... then those of maps whose columns are split, the lengths of columns with them, ...
    (rf"({WIDENING})/lora_a$", P("data", None)),
    (rf"({WIDENING})/lora_b$", P(None, ("model", "data"))),
    (rf"({WIDENING})/lora_magnitude$", P("model")),
    # ... and those of maps whose rows are.
    (rf"({NARROWING})/lora_a$", P(("model", "data"), None)),
    (rf"({NARROWING})/lora_b$", P(None, "data")),
    (rf"({NARROWING})/lora_magnitude$", P()),
    # Norms are a few kilobytes, and every device needs them whole.
    (NORM.pattern, P()),
    # What reads a tower's tokens while it is pretrained; small.
    (r"(^|/)probe/\w+$", P()),
    # Counters of the training state and of its optimizer, and Muon's five coefficients.
    (r"(^|/)(step|count|halted|ns_coeffs)$", P()),
)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """A pytree path as `a/b/0/c`, the form that the table is searched in."""
    parts = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
    # An NNX variable in a tree adds a level that is no part of the parameter's name.
    return "/".join(part for part in parts if part != "value")


def shard_specs(tree: PyTree, table: tuple[tuple[str, P], ...] = TABLE) -> PyTree:
    """The table's `PartitionSpec` of every leaf, in a tree of the same structure.

    Args:
        tree: parameters, or a training state that repeats their paths; arrays or
            `jax.ShapeDtypeStruct`s.
        table: ordered (regular expression, spec) lines.

    Raises:
        ValueError: leaves that no line matches, all of them listed, or a leaf with fewer
            dimensions than its line splits.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    specs, problems = [], []
    for path, leaf in leaves:
        name = path_name(path)
        spec = next((spec for pattern, spec in table if re.search(pattern, name)), None)
        if spec is not None and is_stacked(name) and spec != P():
            spec = P(None, *spec)
        if spec is None:
            problems.append(f"{name or '(root)'} {tuple(leaf.shape)}: no line")
        elif len(spec) > len(leaf.shape):
            problems.append(f"{name} {tuple(leaf.shape)}: {spec} has too many axes")
        specs.append(spec)
    if problems:
        raise ValueError(
            "the sharding table does not cover these arrays; add a line for each to "
            "afmrl_jax/parallel/sharding.py:\n  " + "\n  ".join(problems)
        )
    return jax.tree.unflatten(structure, specs)


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """The `NamedSharding` of every leaf on `mesh`, for `jit`'s `out_shardings` and for restoring.

    An axis that does not divide its dimension is dropped there, see `mesh.fit_spec`.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        mesh: from `make_mesh`; an abstract one is enough to ask for the shapes of shards.
    """
    sizes = dict(mesh.shape)
    return jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, fit_spec(spec, tuple(leaf.shape), sizes)),
        tree,
        shard_specs(tree),
    )


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Parameters or a training state moved to where the table wants them."""
    return to_devices(tree, shardings(tree, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data`, whole along every other dimension."""
    return NamedSharding(mesh, P("data"))


def place_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """A batch's arrays split by rows; one whose rows do not divide (or a scalar) is replicated.

    Every process has the whole batch, and gives its own devices their rows.

    `Chunks` are split along the axis of their shares, so that every device has a part of each.
    """
    sizes = dict(mesh.shape)

    def split(wish: P, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: NamedSharding(mesh, fit_spec(wish if x.ndim else P(), x.shape, sizes)), tree
        )

    def places(node: PyTree) -> PyTree:
        if not isinstance(node, Chunks):
            return split(P("data"), node)
        texts, pictures = split(P(None, "data"), (node.texts, node.pictures))
        return Chunks(texts, pictures, *split(P("data"), (node.visual, node.place)))

    layout = jax.tree.map(places, batch, is_leaf=lambda x: isinstance(x, Chunks))
    return to_devices(batch, layout)

"""What does a program hear that was written for scverse annbatch, the other package of this import name?

Names that such programs use, with what to write instead. Nothing is translated: the packages share no code, and an
equal name need not mean the same.

1. `missing` makes the error of a name that a module lacks, `missing_attribute` that of an object.
2. `refusing_their_options` refuses options of a function, and `unknown_key` explains keys of a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_NAMES = {
    "annbatch": {
        "DatasetCollection": "write annbatch.create_anndata_collection(adata_paths=…, output_path=path), then "
        "annbatch.Loader(…).use_collection(path)",
        "write_sharded": "write annbatch.create_anndata_collection(adata_paths=…, output_path=path)",
        "abc": "import Sampler from annbatch.samplers",
        "types": "import Batch and CSR from annbatch",
        "io": "import create_anndata_collection and Collection from annbatch",
    },
    "annbatch.samplers": {
        "RandomSampler": "write Loader(shuffle=True), the default, or samplers.Shuffled()",
        "SequentialSampler": "write Loader(shuffle=False), or samplers.Sequential()",
        "DistributedSampler": "TorchLoader and JaxLoader find their rank, and Loader(partition=…) names it",
        "ClassSampler": "write samplers.Grouped(column, weights=…, n_rows=…) for batches of one class each",
        "WeightedClassSampler": "write samplers.ClassBalanced(column, weights=…)",
    },
}
_OPTIONS = {
    "to": "wrap the loader, as in annbatch_torch.TorchLoader(ds) or annbatch_jax.JaxLoader(ds)",
    "to_torch": "wrap the loader, annbatch_torch.TorchLoader(ds)",
    "preload_to_gpu": 'write Loader(device="cuda")',
    "batch_sampler": "write Loader(sampler=…), one of annbatch.samplers",
    "rng": "write Loader(seed=…)",
    "concat_strategy": "leave it out",
    "load_adata": "name obs columns in use_collection(path, labels=[…]), layers and obsm in Loader(layers=…, obsm=…)",
}
_ATTRIBUTES = {
    "add_adatas": "write add_anndatas(adatas), or use_collection(path)",
    "add_adata": "write add_anndatas([adata])",
    "add_anndata": "write add_anndatas([adata])",
    "add_datasets": "write add_anndatas(adatas), with AnnData objects whose X are these matrices",
    "add_dataset": "write add_anndatas([adata]), with an AnnData object whose X is this matrix",
    "n_var": "write n_vars",
}
_KEYS = {
    "X": 'write batch["data"]',
    "obs": 'write batch["labels"], or batch.codes[column]',
    "var": "write ds.var, which holds for all batches",
}


def missing(module: str, name: str) -> ImportError | AttributeError:
    """Make the error of a name that a module lacks, for its ``__getattr__``.

    ``from annbatch import name`` would show none but ImportError; everybody else expects AttributeError.
    """
    text = _sentence(_NAMES[module], name, f"it has no {name}")
    asked_by = sys._getframe(2).f_globals.get("__name__")
    if text is not None and asked_by == "importlib._bootstrap":
        return ImportError(text, name=module)
    return AttributeError(text or f"module {module!r} has no attribute {name!r}")


def missing_attribute(name: str) -> str | None:
    """Say what stands for an attribute of their loader; None for all other names."""
    return _sentence(_ATTRIBUTES, name, f"its Loader has no {name}")


def unknown_key(key: str) -> str:
    """Say what stands for a key of their batches; any other key is given back."""
    return _sentence(_KEYS, key, f"its batches have no {key}") or key


def refusing_their_options(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a function raise TypeError, with what stands for it, where it is given an option of theirs."""

    @wraps(function)
    def checked(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        for name in options:
            if text := _sentence(_OPTIONS, name, f"its Loader takes no {name}="):
                raise TypeError(text)
        return function(*args, **options)

    return checked


def _sentence(table: Mapping[str, str], name: str, what: str) -> str | None:
    instead = table.get(name)
    return None if instead is None else f"this is annbatch-dlpack, not scverse annbatch, and {what}: {instead}"

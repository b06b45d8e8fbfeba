"""What may a caller choose about a build, and is it in range?

`Options` holds what determines the bytes of a collection, `Resources` what does not. Both check themselves.
`local_directory` checks where the collection goes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from annbatch.check import boolean, expanded, integer, one_of
from annbatch.errors import InputError, redacted
from annbatch.remote.urls import is_url
from annbatch.stores.gene_join import How
from annbatch.stores.merged_var_column import Merge
from annbatch.stores.modality import MEASURED, check_prefixed, own_names
from annbatch.write.array_layout import ArrayLayout, Codec
from annbatch.write.inputs.cell_join import JoinObs
from annbatch.write.inputs.main_matrix import COUNTS
from annbatch.write.inputs.text_file import Repeats
from annbatch.write.shuffle.budget import parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What determines the bytes of a collection, beside its inputs."""

    shuffle: bool
    seed: int
    join: How
    merge: Merge | None
    var_names: Sequence[str] | None
    var_key: str | None
    repeated_genes: Repeats
    x: Sequence[str]
    """Keys of what may become X, see `annbatch.write.inputs.main_matrix.checked_choice`."""
    layers: Sequence[str] | None
    obsm: Sequence[str] | None
    obs_columns: Sequence[str] | None
    obs_as_strings: Sequence[str]
    dense: Sequence[str]
    groupby: tuple[str, ...]
    """Names of obs columns, each once."""
    obs_names: Repeats
    strict: bool
    rows_per_store: int
    chunk_elements: int
    shard_elements: int
    codec: Codec
    narrow: bool
    allow_nonfinite: bool

    def __post_init__(self) -> None:
        try:
            if not 0 <= self.seed < 2**64:
                raise InputError(f"seed must be in [0, 2**64), got {self.seed}")
            integer("rows_per_store", self.rows_per_store, 1)
            for name in ("strict", "shuffle", "narrow", "allow_nonfinite"):
                boolean(name, getattr(self, name))
            for name in ("obs_names", "repeated_genes"):
                one_of(name, getattr(self, name), get_args(Repeats))
            if len(set(self.groupby)) < len(self.groupby):
                raise InputError(f"groupby must name each obs column once, got {list(self.groupby)}")
            if self.merge is not None:
                one_of("merge", self.merge, get_args(Merge))
            one_of("codec", self.codec, get_args(Codec))
            _ = self.layout
        except InputError:
            raise
        except ValueError as e:
            raise InputError(str(e)) from e
        for name in ("layers", "obsm", "obs_columns", "obs_as_strings", "dense", "var_names"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a list of names, got the string {getattr(self, name)!r}")

    @property
    def x_differs(self) -> bool:
        """Whether X may come from different elements of the inputs."""
        return len(self.x) > 1 or self.x == (COUNTS,)

    @property
    def layout(self) -> ArrayLayout:
        """How arrays are cut."""
        return ArrayLayout(self.chunk_elements, self.shard_elements, codec=self.codec)

    def to_json(self) -> dict[str, Any]:
        """Give their JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a build may use."""

    memory_limit: str | int
    threads: int | None
    client: Any
    """A `dask.distributed.Client`, or None."""
    progress: bool

    def __post_init__(self) -> None:
        parse_bytes(self.memory_limit)
        if self.threads is not None:
            try:
                integer("threads", self.threads, 1)
            except ValueError as e:
                raise InputError(str(e)) from e

    @property
    def memory_bytes(self) -> int:
        """The memory limit."""
        return parse_bytes(self.memory_limit)

    @property
    def task_threads(self) -> int:
        """Threads of one process: those asked for, of a cluster its workers', else one for each core that is ours."""
        if self.threads is not None:
            return self.threads
        if self.client is not None:
            return max([1, *map(int, self.client.nthreads().values())])
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalOptions:
    """What a caller may choose about modalities.

    Elsewhere, names of what belongs to a modality begin with it, as in ``"rna:counts"``.
    """

    join_obs: JoinObs
    var_names: Mapping[str, Sequence[str]]
    """By modality: the genes to write."""

    def __post_init__(self) -> None:
        try:
            one_of("join_obs", self.join_obs, get_args(JoinObs))
        except ValueError as e:
            raise InputError(str(e)) from e

    def check(self, options: Options, modalities: Sequence[str]) -> None:
        """Refuse names of no modality; pure.

        Raises
        ------
        InputError
            Names the option and the modalities.
        """
        for what in ("layers", "obsm", "dense"):
            check_prefixed(what, getattr(options, what) or (), modalities)
        if unknown := [name for name in self.var_names if name not in modalities]:
            raise InputError(f"var_names must be by modality, {list(modalities)}, got {unknown}")

    def of_joint(self, options: Options, modalities: Sequence[str]) -> Options:
        """Give the options of what modalities share: names and obs."""
        prefixes = tuple(f"{name}:" for name in modalities)
        columns = options.obs_columns
        kept = None if columns is None else [name for name in columns if not name.startswith(prefixes)]
        if kept is not None:
            kept += [name for name in options.groupby if name not in kept]
        return replace(
            options,
            x=("X",),
            merge=None,
            var_key=None,
            layers=(),
            obsm=(),
            dense=(),
            obs_columns=kept,
            obs_as_strings=[name for name in options.obs_as_strings if not name.startswith(prefixes)],
            var_names=None,
        )

    def of_modality(self, options: Options, name: str) -> Options:
        """Give the options of one modality."""

        def own(names: Sequence[str] | None) -> list[str] | None:
            return None if names is None else own_names(names, name)

        columns = own(options.obs_columns)
        if columns is not None and self.join_obs == "outer" and MEASURED not in columns:
            columns.append(MEASURED)
        return replace(
            options,
            layers=own(options.layers),
            obsm=own(options.obsm),
            dense=own_names(options.dense, name),
            obs_columns=columns,
            obs_as_strings=own_names(options.obs_as_strings, name),
            groupby=(),
            # Those of the joint obs, which are.
            obs_names="refuse",
            var_names=self.var_names.get(name),
        )

    def to_json(self) -> dict[str, Any]:
        """Give their JSON values."""
        return {"join_obs": self.join_obs, "var_names": {name: list(one) for name, one in self.var_names.items()}}


def local_directory(name: str, path: str | os.PathLike[str]) -> Path:
    """Give the real path of a directory to write.

    Raises
    ------
    InputError
        If ``path``, the argument ``name``, is a URL.
    """
    if isinstance(path, str) and is_url(path):
        remedy = "build locally, then copy the collection there"
        raise InputError(f"{name} must be a local directory, got the URL {redacted(path)}; {remedy}")
    # Beside the real directory, so that a link to it stays a link and the rename stays on one filesystem.
    return Path(os.path.realpath(expanded(path)))

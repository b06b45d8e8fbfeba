"""A second reader of collections, written from ``docs/format.md`` alone, with zarr and NumPy.

`read` checks what the page says that a reader must check, and gives everything as plain arrays.
"""

import json
import re
from pathlib import Path

import google_crc32c
import numpy as np
import zarr

NAME = re.compile(r"chunk_(0|[1-9][0-9]{0,8})\.zarr")


def check(holds, what):
    if not holds:
        raise ValueError(what)


class Store:
    """One store: its records, and the zarr group."""

    def __init__(self, folder, entry):
        self.folder, self.name, self.n_obs = folder / entry["name"], entry["name"], entry["n_obs"]
        self.files = entry["files"]
        for key, record in self.files.items():
            check({"", ".", ".."}.isdisjoint(key.split("/")) and "\0" not in key, f"path {key}")
            path = self.folder / key
            check(path.is_file() and path.stat().st_size == record["nbytes"], f"{self.name}/{key}: size")
        self.root = zarr.open_group(self.folder, mode="r", zarr_format=3, use_consolidated=False)

    def array(self, path):
        """Read an array; files whose chunks have no checksums are compared with their records."""
        found = self.root[path]
        codecs = json.loads((self.folder / path / "zarr.json").read_bytes())["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            codecs = codecs[0]["configuration"]["codecs"]
        if {"crc32c", "annbatch.packed"}.isdisjoint(codec["name"] for codec in codecs):
            for key, record in self.files.items():
                if key.startswith(f"{path}/c"):
                    crc = google_crc32c.value((self.folder / key).read_bytes())
                    check(crc == record["crc32c"], f"{self.name}/{key}: crc32c")
        return found[...]

    def matrix(self, path, dtype, n_columns=None):
        """Read a CSR or dense matrix as a dense one of this type, (n_obs, n_columns)."""
        node = self.root[path]
        if isinstance(node, zarr.Array):
            stored = self.array(path)
            check(stored.shape == (self.n_obs, n_columns or stored.shape[1]), f"{path}: shape")
            return stored.astype(dtype or stored.dtype)
        check(node.attrs["encoding-type"] == "csr_matrix", f"{path}: encoding-type")
        check(list(node.attrs["shape"]) == [self.n_obs, n_columns], f"{path}: shape")
        data, indices, indptr = (self.array(f"{path}/{key}") for key in ("data", "indices", "indptr"))
        indptr = indptr.astype(np.int64)
        check(indptr.shape == (self.n_obs + 1,) and (np.diff(indptr) >= 0).all() and indptr[0] == 0, f"{path}: indptr")
        check(data.shape == indices.shape == (indptr[-1],), f"{path}: number of elements")
        rows, columns = np.repeat(np.arange(self.n_obs), np.diff(indptr)), indices.astype(np.int64)
        check(((columns >= 0) & (columns < n_columns)).all(), f"{path}: column numbers")
        check(((np.diff(rows) > 0) | (np.diff(columns) > 0)).all(), f"{path}: column numbers ascend")
        dense = np.zeros((self.n_obs, n_columns), dtype)
        dense[rows, columns] = data.astype(dtype)
        return dense

    def names(self, frame):
        """Read the index of obs or var, (n,) str objects."""
        return self.array(f"{frame}/{self.root[frame].attrs['_index']}").astype(object)

    def column(self, frame, name):
        """Read a column of obs, (n_obs,) objects; None is missing."""
        path = f"{frame}/{name}"
        encoding = self.root[path].attrs["encoding-type"]
        if encoding in ("array", "string-array"):
            values = self.array(path).astype(object)
        elif encoding == "categorical":
            codes, categories = (self.array(f"{path}/{key}") for key in ("codes", "categories"))
            check((codes >= -1).all() and (codes < len(categories)).all(), f"{path}: codes")
            values = np.append(categories.astype(object), None)[codes]
        else:
            check(encoding in ("nullable-integer", "nullable-boolean"), f"{path}: {encoding}")
            values = self.array(f"{path}/values").astype(object)
            values[self.array(f"{path}/mask")] = None
        check(values.shape == (self.n_obs,), f"{path}: rows")
        return values


def read_manifest(folder):
    manifest = json.loads((Path(folder) / "collection.json").read_text("utf-8"))
    check(manifest["format"] == "annbatch-dlpack-collection", "format")
    version = manifest["format_version"]
    check(version in (1, 2), f"format_version {version} of {manifest.get('software')}")
    for entry in manifest["stores"]:
        check(NAME.fullmatch(entry["name"]), entry["name"])
    names = [entry["name"] for entry in manifest["stores"]]
    check(len(set(names)) == len(names), "names of stores")
    check(manifest["n_obs"] == sum(entry["n_obs"] for entry in manifest["stores"]), "n_obs")
    manifest["stores"].sort(key=lambda entry: int(NAME.fullmatch(entry["name"])[1]))
    if version == 2:
        parts = manifest["modalities"].values()
        check(manifest["n_vars"] == sum(one["n_vars"] for one in parts), "n_vars")
        check(all(len(one["nnz"]) == len(names) for one in parts), "nnz")
    return manifest


def read_part(stores, prefix, about, nnz):
    """Read one AnnData of all stores: X, layers, obsm, columns of obs, and the genes."""
    found = {"layers": {}, "obsm": {}}
    genes = [tuple(store.names(f"{prefix}var")) for store in stores]
    check(len(set(genes)) == 1 and len(genes[0]) == about["n_vars"], "var names")
    found["genes"] = list(genes[0])
    for store, n in zip(stores, nnz, strict=True):
        x = store.root[f"{prefix}X"]
        check(n is None if isinstance(x, zarr.Array) else x["data"].shape == (n,), f"{prefix}X: nnz")
    for key, types in about["types"].items():
        parts = [store.matrix(f"{prefix}{key}", types["original"], about["n_vars"]) for store in stores]
        values = np.concatenate(parts)
        if key == "X":
            found["X"] = values
        else:
            found["layers"][key.removeprefix("layers/")] = values
    for name in stores[0].root[f"{prefix}obsm"]:
        parts = [store.matrix(f"{prefix}obsm/{name}", None) for store in stores]
        found["obsm"][name] = np.concatenate(parts)
    found["obs"] = read_columns(stores, f"{prefix}obs", about["obs_columns"])
    return found


def read_columns(stores, frame, names):
    return {name: np.concatenate([store.column(frame, name) for store in stores]) for name in names}


def read(folder):
    """Give ``names``, and X, layers, obsm, obs and genes; of modalities, these of each under ``modalities``."""
    manifest = read_manifest(folder)
    stores = [Store(Path(folder), entry) for entry in manifest["stores"]]
    names = [store.names("obs") for store in stores]
    check([len(of_store) for of_store in names] == [store.n_obs for store in stores], "names of cells")
    found = {"manifest": manifest, "names": list(np.concatenate(names))}
    if manifest["format_version"] == 1:
        return found | read_part(stores, "", manifest, [entry["nnz"] for entry in manifest["stores"]])
    found["obs"], found["modalities"] = read_columns(stores, "obs", manifest["obs_columns"]), {}
    for name, about in manifest["modalities"].items():
        for store, joint in zip(stores, names, strict=True):
            check(list(store.names(f"mod/{name}/obs")) == list(joint), f"mod/{name}: names of cells")
        part = read_part(stores, f"mod/{name}/", about, about["nnz"])
        part["mask"] = part["obs"]["measured"].astype(bool) if about["masked"] else None
        found["modalities"][name] = part
    return found

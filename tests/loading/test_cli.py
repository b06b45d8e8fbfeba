"""Does the command line do what the library does, and say so in text, JSON and exit codes?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner, Result

from annbatch.cli import main
from annbatch.stores.collection import Collection
from annbatch.stores.manifest import checksum
from datagen import named_adata, write_inputs


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    done = run("create", *write_inputs(folder), folder / "store", "--no-progress", "--rows-per-store", 5)
    assert done.exit_code == 0, done.output
    return folder / "store"


@pytest.fixture
def collection(built: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(built, tmp_path / "store"))


def test_create_says_what_it_made(collection: Path):
    found = Collection.open(collection)
    assert (found.n_obs, found.n_vars, len(found.stores)) == (12, 15, 3)
    done = run("info", collection)
    assert "12 cells × 15 genes in 3 stores" in done.output
    assert "X: stored as uint16, was float32" in done.output
    assert "input0.h5ad: 7 cells; lost 0 genes, 0 values, 0 counts" in done.output


def test_create_with_options(tmp_path: Path):
    genes = tmp_path / "genes.txt"
    genes.write_text("g4\ng2\n")
    arguments = ["--genes", genes, "--groupby", "cell_type", "--obs-column", "cell_type", "--dense", "X", "--json"]
    done = run("create", *write_inputs(tmp_path), tmp_path / "store", "--no-progress", *arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n_obs"], found["n_vars"], found["grouped_by"]) == (12, 2, "cell_type")
    assert found["obs_columns"] == ["cell_type", "src_path"]
    assert found["inputs"][0]["genes_lost"] == 10
    assert isinstance(ad.read_zarr(tmp_path / "store" / "chunk_0.zarr").X, np.ndarray)


def test_append_and_json(tmp_path: Path, collection: Path):
    (tmp_path / "more").mkdir()
    (path,) = write_inputs(tmp_path / "more", sizes=(4,))
    done = run("append", path, collection, "--no-progress", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_obs"] == 16
    assert json.loads(run("info", collection, "--json").stdout)["n_obs"] == 16


def test_head(collection: Path):
    done = run("head", collection, "-n", 7)
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 8
    rows = json.loads(run("head", collection, "-n", 7, "--json").output)
    stores = ad.concat([ad.read_zarr(path) for path in Collection.open(collection).store_paths])
    assert [row["obs_name"] for row in rows] == stores.obs_names[:7].tolist()
    assert [row["X sum"] for row in rows] == stores.X[:7].sum(axis=1).A1.tolist()


def test_verify_finds_nothing_in_what_is_whole(collection: Path):
    done = run("verify", collection, "--no-progress")
    assert (done.exit_code, done.output) == (0, "3 of 3 stores are whole\n")
    assert json.loads(run("verify", collection, "--no-progress", "--json").output)["ok"]


def flip(collection: Path) -> None:
    path = collection / "chunk_1.zarr/X/data/c/0"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)


def remove(collection: Path) -> None:
    (collection / "chunk_1.zarr/obs/n_counts/c/0").unlink()


def rewrite(name: str, change: Any) -> Any:
    """Change an array and its record, so that only its contents give it away."""

    def damage(collection: Path) -> None:
        store = collection / "chunk_1.zarr"
        array = zarr.open_array(store / name, mode="r+")
        array[:] = change(array[:])
        manifest = json.loads((collection / "collection.json").read_text())
        entry = next(store for store in manifest["stores"] if store["name"] == "chunk_1.zarr")
        for key in entry["files"]:
            found = checksum(store / key)
            entry["files"][key] = {"nbytes": found.nbytes, "crc32c": found.crc32c}
        (collection / "collection.json").write_text(json.dumps(manifest))

    return damage


DAMAGE = {
    "a flipped bit": (flip, "X/data/c/0: must have"),
    "a missing file": (remove, "obs/n_counts/c/0: cannot be read"),
    "indptr falls": (rewrite("X/indptr", lambda a: a[[0, 2, 1, *range(3, len(a))]]), "indptr must start at 0"),
    "unsorted columns": (rewrite("X/indices", lambda a: a[::-1]), "column numbers must ascend within a row"),
    "columns out of range": (rewrite("X/indices", lambda a: a + 15), r"be in \[0, 15\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_names_what_is_damaged(collection: Path, name: str):
    damage, message = DAMAGE[name]
    damage(collection)
    done = run("verify", collection, "--no-progress")
    assert done.exit_code == 3
    assert done.output.splitlines()[-1] == "2 of 3 stores are whole"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(done.output)
    found = json.loads(run("verify", collection, "--no-progress", "--json").output)
    assert list(found["damage"]) == ["chunk_1.zarr"]


def test_exit_codes(tmp_path: Path, collection: Path):
    paths = write_inputs(tmp_path)
    taken = run("create", *paths, collection, "--no-progress")
    assert (taken.exit_code, taken.stdout) == (1, "")
    assert (
        taken.stderr
        == f"Error: {collection}: already exists; pass --overwrite to replace a collection, or choose another OUTPUT\n"
    )
    missing = run("create", tmp_path / "gone.h5ad", tmp_path / "new", "--no-progress")
    assert missing.exit_code == 2
    assert "gone.h5ad: no such file" in missing.stderr
    assert run("info", tmp_path).exit_code == 3
    assert run("create").exit_code == 2
    forgotten = run("create", *paths)
    assert (forgotten.exit_code, "is a file" in forgotten.stderr) == (2, True)


COMMAND_LINE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored where the tests were started
from annbatch.cli import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_and_going_on(tmp_path: Path):
    (source,) = write_inputs(tmp_path, sizes=(400,), obs_columns=["n_counts"])
    output = tmp_path / "out" / "store"
    building = output.with_name(".store.building")
    command = ["create", str(source), str(output), "--no-progress", "--rows-per-store", "40"]
    child = subprocess.Popen([sys.executable, "-c", COMMAND_LINE, *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (building / "collection" / "chunk_1.zarr").exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130
    assert said.splitlines() == [
        "Interrupted",
        f"{output}: run the same again to resume; to give up, remove {building}",
    ]
    assert [p.name for p in output.parent.iterdir()] == [building.name]
    complete = {p.name: p.stat().st_ino for p in building.glob("collection/chunk_*")}
    assert {"chunk_0.zarr", "chunk_1.zarr"} <= complete.keys()
    assert len(complete) < 10
    other = run(*command, "--seed", 1)
    assert (other.exit_code, "an unfinished build with another seed" in other.stderr) == (1, True)
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert [p.name for p in output.parent.iterdir()] == [output.name]
    assert complete.items() <= {p.name: p.stat().st_ino for p in output.glob("chunk_*")}.items()
    Collection.open(output).verify()


def test_help_shows_a_line_for_each_example():
    shown = run("--help").output.splitlines()
    assert sum(line.lstrip().startswith("annbatch ") for line in shown) == 3


@pytest.mark.parametrize("command", ["create", "append", "info", "verify", "head"])
def test_every_command_has_help(command: str):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "--json" in done.output
    assert len(done.output.splitlines()) > 6


# --- inputs and genes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [b"g4\ng2\n", b"\xef\xbb\xbfg4\r\n\r\n g2 \r\n"], ids=["plain", "Windows"])
def test_genes_from_a_file(written: bytes, tmp_path: Path):
    (tmp_path / "genes.txt").write_bytes(written)
    inputs = write_inputs(tmp_path, obs_columns=["n_counts"])
    done = run("create", *inputs, tmp_path / "store", "--genes", tmp_path / "genes.txt")
    assert done.exit_code == 0, done.output
    assert ad.read_zarr(tmp_path / "store" / "chunk_0.zarr").var_names.tolist() == ["g4", "g2"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"\n\r\n", "must name at least one gene, one a line, got none"),
        (b"g4\n\xff\n", "UTF-8 text, got byte 0xff at position 3"),
    ],
)
def test_files_of_genes_that_name_none(written: bytes, message: str, tmp_path: Path):
    (tmp_path / "genes.txt").write_bytes(written)
    inputs = write_inputs(tmp_path, obs_columns=["n_counts"])
    done = run("create", *inputs, tmp_path / "store", "--genes", tmp_path / "genes.txt")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"Error: {tmp_path}/genes.txt: must " in done.stderr
    assert message in done.stderr


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files whose names have numbers, and a name that is a pattern."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    inputs = write_inputs(tmp_path, sizes=(1, 2, 3), obs_columns=["n_counts"])
    for path, name in zip(inputs, ("s10", "s2", "s[1]"), strict=True):
        path.rename(folder / f"{name}.h5ad")
    return folder


def names_of_inputs(done: Result) -> list[str]:
    assert done.exit_code == 0, done.output
    return [entry["name"] for entry in json.loads(done.stdout)["inputs"]]


@pytest.mark.filterwarnings("ignore:genes are left out")
def test_patterns_and_lists_of_inputs(samples: Path):
    create = ("create", "--json", "--no-progress")
    assert names_of_inputs(run(*create, "data/s*0.h5ad", "data/s?.h5ad", "a")) == ["data/s10.h5ad", "data/s2.h5ad"]
    assert names_of_inputs(run(*create, "data/s[1].h5ad", "b")) == ["data/s[1].h5ad"]
    assert names_of_inputs(run(*create, "**/s[0-9]*.h5ad", "c")) == ["data/s2.h5ad", "data/s10.h5ad"]
    Path("list.txt").write_bytes(b"\xef\xbb\xbf# a comment\r\n\r\ndata/s2.h5ad\r\n")
    listed = run(*create, "--inputs-from", "list.txt", "data/s10.h5ad", "d")
    assert names_of_inputs(listed) == ["data/s10.h5ad", "data/s2.h5ad"]
    arguments = ["append", "--json", "--no-progress", "--inputs-from", "-", "d"]
    appended = CliRunner().invoke(main, arguments, input="data/s*]*\n")
    assert names_of_inputs(appended)[-1] == "data/s[1].h5ad"


@pytest.mark.filterwarnings("ignore:genes are left out")
def test_names_of_inputs(samples: Path):
    create = ("create", "--json", "--no-progress")
    Path("list.txt").write_text("B=data/s1*.h5ad\n")
    given = ("the first=data/s2.h5ad", "data/s[1].h5ad", "--inputs-from", "list.txt")
    assert names_of_inputs(run(*create, *given, "a")) == ["the first", "data/s[1].h5ad", "B"]
    stores = [ad.read_zarr(path) for path in Collection.open("a").store_paths]
    assert {name for store in stores for name in store.obs["src_path"]} == {"the first", "data/s[1].h5ad", "B"}
    assert names_of_inputs(run("append", "--json", "--no-progress", "C=data/s2.h5ad", "a"))[-1] == "C"
    # Folders of some tools have the sign in their names.
    Path("run=1").mkdir()
    Path("data/s2.h5ad").rename("run=1/x.h5ad")
    assert names_of_inputs(run(*create, "run=1/x.h5ad", "b")) == ["run=1/x.h5ad"]
    assert names_of_inputs(run(*create, "run=*/x.h5ad", "c")) == ["run=1/x.h5ad"]
    for faulty, message in {
        ("A=data/s10.h5ad", "A=data/s[1].h5ad"): "A: must name one input, got data/s10.h5ad and data/s[1].h5ad",
        ("A=data/*.h5ad",): "A=data/*.h5ad: must name one input, got 2 that match data/*.h5ad",
        ("A=data/gone.h5ad",): "A (data/gone.h5ad): no such file or directory",
    }.items():
        refused = run("create", *faulty, "d", "--no-progress")
        assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (2, f"Error: {message}")


def test_inputs_that_are_none(samples: Path):
    assert "Missing argument 'INPUTS...' or option '--inputs-from'" in run("create", "a").stderr
    none = run("create", "data/*.zarr", "a")
    assert (none.exit_code, none.stderr) == (2, "Error: data/*.zarr: no file or directory matches this pattern\n")
    folder = run("create", "data", "a", "--no-progress")
    assert folder.exit_code == 2
    assert "data: must be an AnnData file or a .zarr directory, got a folder that is not a store" in folder.stderr
    assert "pass its contents: data/*.h5ad" in folder.stderr
    Path("empty.txt").write_text("# nothing\n")
    empty = run("create", "--inputs-from", "empty.txt", "a")
    assert (empty.exit_code, "empty.txt: must name at least one input" in empty.stderr) == (2, True)
    Path("table.csv").write_text("a,b\n")
    assert "Write it as .h5ad with anndata" in run("create", "table.csv", "a", "--no-progress").stderr


def test_obsm_is_chosen(tmp_path: Path):
    data = named_adata(np.random.default_rng(0), range(5), range(4))
    data.obsm["pca"], data.obsm["umap"] = np.ones((5, 3), "f4"), np.ones((5, 2), "f4")
    data.write_h5ad(tmp_path / "a.h5ad")
    done = run("create", tmp_path / "a.h5ad", tmp_path / "store", "--obsm", "umap", "--no-progress")
    assert done.exit_code == 0, done.output
    assert list(ad.read_zarr(tmp_path / "store" / "chunk_0.zarr").obsm) == ["umap"]


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_collection_is_reshuffled(tmp_path: Path):
    data = named_adata(np.random.default_rng(0), range(6), range(4))
    data.obs = pd.DataFrame({"kind": ["a", "b"] * 3, "donor": ["x", "x", "y"] * 2}, index=data.obs_names)
    for name in ("pca", "umap"):
        data.obsm[name] = np.ones((6, 2), "f4")
    data.layers["half"], data.layers["double"] = data.X * 0.5, data.X * 2
    more = data.copy()
    more.obs_names = [f"more{i}" for i in range(6)]
    data.write_h5ad(tmp_path / "a.h5ad")
    more.write_h5ad(tmp_path / "b.h5ad")
    store, output = tmp_path / "store", tmp_path / "mixed"
    assert run("create", tmp_path / "a.h5ad", store, "--no-progress").exit_code == 0
    del more.obsm["pca"]
    more.write_h5ad(tmp_path / "c.h5ad")
    refused = run("append", tmp_path / "c.h5ad", store, "--no-progress")
    assert refused.exit_code == 2
    assert "annbatch reshuffle, with --obsm or --no-obsm, writes the collection with fewer" in refused.stderr
    refused = run("append", tmp_path / "b.h5ad", store, "--layer", "half", "--no-progress")
    assert "--layer must be those of the collection, ['double', 'half'], got ['half']" in refused.stderr
    chosen = ["--layer", "half", "--layers", "double", "--obsm", "pca", "--obsm", "umap"]
    assert run("append", tmp_path / "b.h5ad", store, *chosen, "--no-progress").exit_code == 0
    wanted = ad.concat([ad.read_h5ad(tmp_path / name) for name in ("a.h5ad", "b.h5ad")])
    for options, layers, obsm, columns in (
        ([], ["double", "half"], ["pca", "umap"], ["kind", "donor"]),
        (["--layers", "half", "--no-obsm"], ["half"], [], ["kind", "donor"]),
        (["--no-layers", "--obsm", "umap", "--obs-columns", "kind", "--groupby", "kind"], [], ["umap"], ["kind"]),
    ):
        by = ["--groupby", "donor", "--groupby", "kind"] if not options else []
        done = run("reshuffle", store, output, *options, *by, "--overwrite", "--seed", 3, "--no-progress", "--json")
        assert done.exit_code == 0, done.output
        shown = json.loads(done.stdout)
        assert (shown["seed"], shown["shuffled"]) == (3, True)
        assert shown["grouped_by"] == (["donor", "kind"] if by else "kind" if not layers else None)
        assert ("grouped by donor and kind" in run("info", output).stdout) == bool(by)
        found = ad.read_zarr(output / "chunk_0.zarr")
        # anndata 0.13 lists X among the layers, as None.
        assert (sorted(name for name in found.layers if name), sorted(found.obsm)) == (layers, obsm)
        assert [name for name in found.obs if name != "src_path"] == columns
        np.testing.assert_array_equal(found.X.toarray(), wanted[found.obs_names, found.var_names].X.toarray())
    assert run("append", tmp_path / "c.h5ad", output, "--no-progress").exit_code == 0
    wrong = run("reshuffle", store, output, "--no-obsm", "--obsm", "pca", "--overwrite", "--no-progress")
    assert (wrong.exit_code, "--no-obsm must not be combined with names, got pca" in wrong.stderr) == (2, True)
    assert run("reshuffle", tmp_path / "none", output, "--no-progress").exit_code == 3


# --- words and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory-limit", "1MB"], "--memory-limit must be >= 64 MB"),
        (["--groupby", "none"], "--groupby must be an obs column"),
        (["--layer", "none"], "--layer must be in all inputs"),
        (["--obs-column", "none"], "--obs-column must be in at least one input"),
        (["--obs-names", "refuse"], "(--obs-names refuse), got more than one of"),
        (["--x", "obsm/pca"], "--x must be 'X'"),
    ],
)
def test_errors_speak_of_options(options: list[str], said: str, tmp_path: Path):
    (tmp_path / "memory_limit must").mkdir()
    (path,) = write_inputs(tmp_path / "memory_limit must", sizes=(4,), obs_columns=["n_counts"])
    done = run("create", path, path, tmp_path / "store", "--no-progress", *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "/--memory-limit" not in run("create", f"{path}.gone", tmp_path / "store", "--no-progress").stderr


def test_output_names(tmp_path: Path):
    (path,) = write_inputs(tmp_path, sizes=(4,), obs_columns=["n_counts"])
    wrong = run("create", path, tmp_path / "run[1]", "--x", "layers/none", "--no-progress")
    assert wrong.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".") - len(".building") - len(".12345678")
    refused = run("create", path, tmp_path / ("é" + longest * "n"), "--no-progress")
    assert refused.exit_code == 2
    assert f"OUTPUT must end in a name of at most {longest} bytes" in refused.stderr
    assert f"got one of {longest + 2} bytes" in refused.stderr
    done = run("create", path, tmp_path / (longest * "n"), "--no-progress")
    assert done.exit_code == 0, done.output
    assert sorted(len(found.name) for found in tmp_path.iterdir()) == sorted([len(path.name), longest])


def test_long_lists_in_messages_are_short(tmp_path: Path):
    (path,) = write_inputs(tmp_path, sizes=(4,), obs_columns=["n_counts"])
    options = [word for i in range(300) for word in ("--obs-column", f"column{i}")]
    done = run("create", path, tmp_path / "store", "--no-progress", *options)
    assert "'column4', … 295 more]" in done.stderr

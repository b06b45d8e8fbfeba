"""Configuration of the Sphinx documentation; `make docs` builds it with warnings as errors."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from inspect import isfunction, signature
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import click
import numpy.typing as npt
import pandas as pd
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

# With all that they import, before autodoc puts mocks in place: anndata cannot stand a mocked CuPy.
import annbatch.adapter
import annbatch.testing  # noqa: F401
from annbatch import *  # noqa: F403
from annbatch.cli import main

project = "annbatch-dlpack"
author = "The annbatch-dlpack authors"
project_copyright = "2026, The annbatch-dlpack authors"
version = release = installed_version("annbatch-dlpack")


def named(full_name: str) -> type:
    """Give a class to show where the real one is not installed, or is a long union."""
    module, _, name = full_name.rpartition(".")
    return type(name, (), {"__module__": module})


# What annotations mean. Modules lack some of it, because they import it for type checkers only.
TYPES = {
    "BaseModelClass": named("scvi.model.base.BaseModelClass"),
    "Client": named("distributed.Client"),
    "NDArray": npt.NDArray,
    "npt": SimpleNamespace(
        ArrayLike=named("numpy.typing.ArrayLike"), DTypeLike=named("numpy.typing.DTypeLike"), NDArray=npt.NDArray
    ),
    "pd": pd,
}
for name, module in sys.modules.items():
    if name.startswith("annbatch"):
        vars(module).update(TYPES | vars(module))

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "sphinx_design"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
# Single backticks in docstrings are names.
default_role = "py:obj"
nitpicky = True
# Other projects. Their documentation is not looked up, so that this one builds without a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(anndata|collections|cupy|cupyx|dask|distributed|grain|jax|lightning|numpy|os|pandas|pathlib|ray|scipy|scvi|"
        r"torch|transformers|zarr)\..*",
    ),
    # Types of attributes that have no page of their own.
    ("py:class", r"annbatch\.(dataset|epoch|order|stores)\..*"),
    # Annotations that cannot be evaluated: pandas.Index takes no subscript.
    ("py:class", r"pd\.Index|NDArray"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
# The adapters are documented also where their framework is not installed.
autodoc_mock_imports = [
    name
    for name in ("cupy", "cupyx", "flax", "grain", "jax", "lightning", "ray", "scvi", "torch", "transformers")
    if find_spec(name) is None
]
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
# Needs scvi-tools: `make notebook` executes it, and its outputs are committed.
nb_execution_excludepatterns = ["notebooks/scvi.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
# Notebooks call the command line of this environment, which need not have been activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

html_theme = "furo"
html_title = f"annbatch-dlpack {version}"
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00667a", "color-brand-content": "#00667a"},
    "dark_css_variables": {"color-brand-primary": "#6cc3d5", "color-brand-content": "#6cc3d5"},
}


class CommandHelp(SphinxDirective):
    """What ``annbatch COMMAND --help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        parent = main.make_context("annbatch", [], resilient_parsing=True)
        command = main.get_command(parent, name)
        context = click.Context(command, info_name=name, parent=parent, terminal_width=86)
        text = command.get_help(context)
        return [nodes.literal_block(text, text, language="none")]


def evaluate_annotations(app: Sphinx, documented: object, bound_method: bool) -> None:
    """Let autodoc show the types that a class takes, not the names that its module has for them."""
    if isfunction(documented) and documented.__name__ == "__init__":
        with suppress(NameError, TypeError):
            types = get_type_hints(documented, localns=TYPES)
            shown = signature(documented)
            documented.__signature__ = shown.replace(
                parameters=[
                    one.replace(annotation=types.get(name, one.annotation)) for name, one in shown.parameters.items()
                ]
            )


def public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Link a short name, such as `InputError` or `Loader.stats`, if one public name ends like it."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    ending = f".{node['reftarget']}"
    found = [name for name, entry in domain.objects.items() if name.endswith(ending) and not entry.aliased]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-before-process-signature", evaluate_annotations)
    app.connect("missing-reference", public_name)

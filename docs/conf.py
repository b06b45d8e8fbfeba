"""Configuration of the Sphinx documentation; `make docs` builds it with warnings as errors."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

import click
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

# With all that it imports, before autodoc puts mocks in place: anndata cannot stand a mocked CuPy.
from annbatch import *  # noqa: F403
from annbatch.cli import main

project = "annbatch-dlpack"
author = "The annbatch-dlpack authors"
project_copyright = "2026, The annbatch-dlpack authors"
version = release = installed_version("annbatch-dlpack")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "sphinx_design"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
# Single backticks in docstrings are names.
default_role = "py:obj"
nitpicky = True
# Other projects. Their documentation is not looked up, so that this one builds without a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(anndata|asyncio|collections|contextlib|cupy|cupyx|dask|flax|grain|jax|lightning|logging|mudata|numpy|obstore|"
        r"os|pandas|pathlib|pyarrow|ray|scipy|scvi|torch|torchdata|transformers|zarr)\..*",
    )
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


def public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Link a name of this project by the public name that ends like it.

    Annotations name classes by the modules that define them (`annbatch.loader.Loader`), and docstrings by their own
    names (`InputError`, `Loader.stats`).
    """
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    if parts[0].startswith("annbatch"):
        # What follows the modules: a class with its members, or a function.
        classes = [i for i, part in enumerate(parts) if part[:1].isupper()]
        parts = parts[classes[0] if classes else -1 :]
    domain = env.get_domain("py")
    found = [name for name in domain.objects if f".{name}".endswith(f".{'.'.join(parts)}")]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("missing-reference", public_name)

# Every target makes the virtual environment that it needs; nothing else has to be installed before.
#   make demo    real cells from .h5ad files into a torch and a Flax model, about two minutes after installation
#   make test    the whole suite (ARGS="-k sampler -x" is passed on to pytest)
#   make test-clients    the tests with scvi-tools, Ray, Keras and the other clients of docs/clients.md, in an environment of
#                        their own; several minutes to install
#   make test-scvi    those of scvi-tools alone; PYTHON=python3.12 takes its newest version
#   make notebook     docs/notebooks/scvi.ipynb executed and saved with its outputs, in an environment of its own
#   make test-lowest    the tests with the oldest versions that pyproject.toml allows, in an environment of their own
#   make test-arm64     bytes and tests on emulated arm64, in a Debian chroot; needs root and qemu (tests/arm64/run.sh)
#   make release-check  metadata, workflows, recipe and distributions, by tools in an environment of their own
#   make lint    ruff, mypy --strict, the floors of the rooms (import-linter), and spelling (codespell)
#   make docs    the documentation, in docs/_build/html
#   make bench   the benchmarks (ARGS is passed on)
#   make figures which results are older than the code that they measure
#   make mutants which small faults the tests do not notice; takes hours (ARGS="order/ plan/" for some modules)
#   make test-gpu, make bench-gpu    the tests and the benchmark that need a GPU, whose driver is of CUDA 13

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# Pages whose code blocks are formatted for the width of their column.
PAGES = README.md CONTRIBUTING.md docs/*.md docs/notebooks/*.md
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

.PHONY: demo test test-clients .run-clients test-scvi .run-scvi notebook .run-notebook test-lowest .run-lowest test-arm64 test-gpu release-check .run-release-check lint format docs bench figures bench-gpu mutants clean
.SECONDARY:

demo: $(VENV)/.installed-demo
	$(BIN)/python benchmarks/demo.py $(ARGS)

# Three processes keep two cores busy, also while a test waits.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 3 $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 88 $(PAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/ruff format --line-length 88 $(PAGES)

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet --fresh-env docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/bench.py $(ARGS)

figures: $(VENV)/.installed-test
	$(BIN)/python benchmarks/ages.py $(ARGS)

mutants: $(VENV)/.installed-mutants
	$(BIN)/python tests/mutants/run.py $(ARGS)
	$(BIN)/python tests/mutants/table.py

test-clients:
	$(MAKE) --no-print-directory VENV=$(VENV)-clients .run-clients

.run-clients: $(VENV)/.installed-clients
	$(BIN)/python -m pytest tests/clients $(ARGS)

test-scvi:
	$(MAKE) --no-print-directory VENV=$(VENV)-scvi .run-scvi

.run-scvi: $(VENV)/.installed-scvi
	$(BIN)/python -m pytest tests/clients/test_scvi.py $(ARGS)

notebook:
	$(MAKE) --no-print-directory VENV=$(VENV)-notebook .run-notebook

.run-notebook: $(VENV)/.installed-notebook
	$(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.record_timing=False --inplace docs/notebooks/scvi.ipynb

test-lowest:
	$(MAKE) --no-print-directory VENV=$(VENV)-lowest .run-lowest

.run-lowest: $(VENV)/.installed-lowest
	$(BIN)/python -m pytest -n 3 $(ARGS)

test-arm64: $(VENV)/.installed-test
	VENV=$(VENV) tests/arm64/run.sh $(ARGS)

test-gpu: $(VENV)/.installed-gpu
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench-gpu: $(VENV)/.installed-gpu
	$(BIN)/python benchmarks/bench_gpu.py $(ARGS)

# CITATION.cff and the files for GitHub and Read the Docs are checked against their published schemas.
release-check:
	$(MAKE) --no-print-directory VENV=$(VENV)-release .run-release-check

.run-release-check: $(VENV)/.installed-release
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --no-progress .github
	$(BIN)/check-jsonschema --builtin-schema vendor.readthedocs .readthedocs.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/python -c 'import rattler_build as r; r.Stage0Recipe.from_file("conda.recipe/recipe.yaml").render(r.VariantConfig())'
	$(BIN)/shellcheck .ci/run tests/arm64/run.sh
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:
	rm -rf $(VENV) $(VENV)-clients $(VENV)-lowest $(VENV)-release $(VENV)-scvi $(VENV)-notebook .mutants dist demo_output bench_output docs/_build .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis

# Dependency groups need pip 25.1.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

# The demo needs its extra; everything else needs the group of its own name.
$(VENV)/.installed-demo: pyproject.toml | $(BIN)/pip
	$(PIP) --editable ".[demo]" --group demo
	@touch $@

# uv finds versions of all other packages that go with the lowest ones in seconds, pip in many minutes.
$(VENV)/.installed-lowest: pyproject.toml tests/support/lowest_versions.py | $(BIN)/pip
	$(PIP) uv
	$(BIN)/python tests/support/lowest_versions.py > $(VENV)/lowest.txt
	$(BIN)/uv pip compile --quiet --python $(BIN)/python --group test --constraint $(VENV)/lowest.txt --output-file $(VENV)/resolved.txt pyproject.toml
	$(PIP) --editable . --group test --constraint $(VENV)/resolved.txt
	@touch $@

# Tools alone: they need other versions of shared dependencies than the package does.
$(VENV)/.installed-release: pyproject.toml | $(BIN)/pip
	$(PIP) --group release
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/pip
	$(PIP) --editable . --group $*
	@touch $@

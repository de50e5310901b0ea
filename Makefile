# Everything a checkout needs: an environment of its own, the demo, the tests, the checks.
# Needs only Python 3.11 or newer and make. Each target sets up what it uses.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format build clean

help:
	@echo "make setup   create $(VENV) and install polyptych with its development tools"
	@echo "make demo    answer questions over pictures with the bundled model; writes demo/report.html"
	@echo "make test    run the tests"
	@echo "make check   lint, formatting, types, import rules"
	@echo "make format  apply lint fixes and formatting"
	@echo "make build   write the source archive and the wheel to dist/"
	@echo "make clean   remove $(VENV) and everything that tools leave behind"

setup: $(STAMP)

# The stamp is written last: an interrupted installation starts again, a finished one is skipped.
# pip, not uv: constraints.txt pins torch to one version, of which pip takes the build that is
# configured on this machine (CPU or CUDA).
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 on the PATH; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed, $(PYTHON) is older; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch "$@"

demo: $(STAMP)
	"$(BIN)/polyptych" demo

test: $(STAMP)
	"$(BIN)/python" -m pytest $(ARGS)

check: $(STAMP)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

format: $(STAMP)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

build: $(STAMP)
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --constraint constraints.txt build
	"$(BIN)/python" -m build --outdir dist

clean:
	rm -rf "$(VENV)" build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

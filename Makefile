# `make book` and `make test` need Python 3.11 or newer and nothing else: they make their own environment.
# Every path is relative or quoted, so that the clone may lie anywhere.

PYTHON ?= $(shell command -v python3 || command -v python)
VENV ?= .venv
TORCH_INDEX ?=
PORT ?= 8000

PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
# Two threads that wait for each other by spinning stand still beside any other process; sleeping costs them nothing.
export OMP_WAIT_POLICY := PASSIVE

BUILD := build . --all -n -W --keep-going
CHAPTERS := book/[0-9]*.ipynb

.DEFAULT_GOAL := help
.PHONY: help book pdf test test-faults serve notebooks coverage bench mutants lint install clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1#/p' Makefile | while IFS='#' read -r n t; do printf '  make %-11s %s\n' "$$n" "$$t"; done
	@echo "  settings: PYTHON=python3.12  VENV=.venv  PORT=8000"
	@echo "            TORCH_INDEX=https://download.pytorch.org/whl/cpu   (the small CPU build of torch)"

book: install ## run every chapter and build the site into _build/html
	@rm -rf _build/html
	@"$(PY)" "$(VENV)/bin/jupyter-book" $(BUILD)

pdf: install ## run every chapter and print the whole book into _build/book.pdf (needs Chromium)
	@"$(PY)" "$(VENV)/bin/jupyter-book" $(BUILD) --builder singlehtml
	@"$(PY)" book/_tools/pdf.py _build/singlehtml/index.html _build/book.pdf

test: install ## run all tests, the chapters included
	@OMP_NUM_THREADS=1 "$(PY)" -m pytest -n auto --maxprocesses 4 --dist loadfile \
	  --nbval --nbval-cell-timeout 300 --cov atbook --cov-branch --cov-report term:skip-covered --cov-fail-under 95 tests $(CHAPTERS)

test-faults: install ## kill, damage and starve trainings, reruns and sweeps, the long form (an hour)
	@ATBOOK_FAULTS=long OMP_NUM_THREADS=1 "$(PY)" -m pytest -q -rP -n auto --maxprocesses 4 --dist loadfile tests/faults

serve: ## show the built site at http://localhost:8000
	@"$(PYTHON)" -m http.server "$(PORT)" --bind 127.0.0.1 --directory _build/html

notebooks: install ## run the chapters and bring them into the form they are committed in
	@"$(PY)" book/_tools/notebooks.py $(CHAPTERS)

coverage: install ## the tests of the package alone, and how much of it they reach, kept for the status page
	@OMP_NUM_THREADS=1 "$(PY)" -m pytest -q -n auto --maxprocesses 4 --cov atbook --cov-branch \
	  --cov-report term:skip-covered --cov-report json:_build/coverage.json --cov-fail-under 95 tests
	@"$(PY)" book/_tools/record.py _build/coverage.json

bench: install ## measure how fast training is, as ratios
	@"$(PY)" book/_tools/bench.py

mutants: install ## break attention and losses in every place, and see whether a test notices (minutes)
	@OMP_NUM_THREADS=1 "$(PY)" tests/mutants.py

lint: install ## check the style of code and notebooks
	@"$(PY)" -m ruff check --no-cache .

# The stamp holds what the environment was made from; it is written last, so that a broken install leaves none.
install: ## make or renew .venv (the other commands do it when needed)
	@set -e; key="$$({ pwd; cat requirements.txt pyproject.toml; } | cksum)"; \
	[ "$$(cat "$(STAMP)" 2>/dev/null)" != "$$key" ] || exit 0; \
	if "$(PY)" -m pip --version >/dev/null 2>&1; then python="$(PY)"; else python="$(PYTHON)"; fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but '$${python:-none}' is not that: name one with make PYTHON=/path/to/python3 (and delete $(VENV) if it is older)." >&2; exit 1; }; \
	[ "$$python" = "$(PY)" ] || "$$python" -m venv --clear "$(VENV)"; \
	rm -f "$(STAMP)"; \
	"$(PY)" -m pip install --disable-pip-version-check -r requirements.txt $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)"); \
	echo "$$key" > "$(STAMP)"

clean: ## remove the built site and what the chapters' runs left in _build
	@rm -rf _build .pytest_cache .ruff_cache .coverage

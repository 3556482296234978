# Two commands: `make book` builds the site, `make test` proves the project right. `make` alone lists the rest.

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# What the virtual environment is made with; any Python from 3.11 on: `make book PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# A GPU machine may have no network: there the Python that is there does it, with the PyTorch that it has.
ANY_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
# One chapter instead of all: `make notebooks NAME=batch_norm`.
NAME ?=

.PHONY: help book test notebooks address serve lighthouse links lab bench claims test-gpu gpu-evidence clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making .venv with $$($(PYTHON) --version) …"; $(PYTHON) -m venv .venv; }
	@echo "Installing the package and the pinned tools; PyTorch is large, so the first time takes minutes …"
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[book,test]' \
		| { grep --line-buffered -E '^(Downloading|  Downloading|Building|Installing|Successfully|ERROR)' || true; } \
		| cut -c 1-100
	@touch $@

book: $(INSTALLED) ## build the site, executing the notebooks that changed
	@mkdir -p _build
	@# After a failure the pages are forgotten: Sphinx would not repeat their warnings, and the next build would pass.
	@PYTHONUNBUFFERED=1 $(BIN)/jupyter-book build . -W -n --keep-going 2>&1 | tee _build/book.log \
		|| { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

test: $(INSTALLED) ## everything that proves the project right
	@$(BIN)/python book/tools/suite.py

notebooks: $(INSTALLED) ## regenerate notebooks/*.ipynb from the .py, with the checked outputs
	@$(BIN)/python book/tools/chapters.py $(NAME)

address: $(INSTALLED) ## carry the public address everywhere; URL=https://github.com/me/fork changes it
	@$(BIN)/python book/tools/address.py $(URL)

serve: ## serve the built site on this machine
	@$(PYTHON) book/tools/serve.py

lighthouse: $(INSTALLED) ## measure the built site as Lighthouse does, a report (needs Node and Chromium)
	@$(BIN)/python book/tools/lighthouse.py

links: ## ask every address outside that the built site links to whether it is still there
	@$(PYTHON) book/tools/links.py

lab: $(INSTALLED) ## open the notebooks in JupyterLab (installs it)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	@$(BIN)/jupyter lab notebooks

bench: $(INSTALLED) ## time every technique on this machine, compiled too
	@$(BIN)/normtutor bench --compiled

claims: $(INSTALLED) ## run the experiments in full and record them
	@$(BIN)/python -m normtutor.lab.claims

test-gpu: ## the tests that need a CUDA device
	@# Only the files that have one: the others may import what that machine lacks.
	@$(ANY_PYTHON) -m pytest -m gpu $$(grep -rl --include='test_*.py' 'mark\.gpu' tests)

gpu-evidence: ## record parity and timing on this machine's GPU
	@$(ANY_PYTHON) -m normtutor.lab.evidence

clean: ## remove what make made
	rm -rf .venv _build book/generated

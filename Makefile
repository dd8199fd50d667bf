# The first command in a fresh clone can be any of these: each makes the .venv that it needs.
# Present must be python3 3.11 or later with its venv module, and for Spark Java 17 or later.
# Another Python: make PYTHON=python3.12 ... (then `make distclean` first).

PYTHON ?= python3
ARGS ?=
FUZZ_SECONDS ?= 60
WORKERS ?= 2

BIN = .venv/bin
UV_INSTALL = $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # checks come before the downloads they would spoil

.PHONY: help demo install check audit format test test-fast test-long test-unit test-fuzz test-models test-browser test-spark test-cluster test-gpu fuzz bench wheel clean distclean java browser

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: java .venv/.demo  ## Score the images in examples/ on this machine (no GPU, no torch) and show the tables
	@rm -rf demo-out
	@$(BIN)/nsfw-spark run examples/images --output demo-out --model open-nsfw --max-error-rate 0.5

install: .venv/.dev  ## Make .venv with every extra and the development tools (torch: several GB)

check: .venv/.dev  ## Lint, formatting, types, import layers, spelling, no secrets in files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo codespell; $(FILES) | xargs -0 $(BIN)/codespell
	@echo detect-secrets; $(FILES) | xargs -0 $(SECRETS)

FILES = if git rev-parse --is-inside-work-tree >/dev/null 2>&1; \
  then git ls-files -z --cached --others --exclude-standard; \
  else find . -path ./.venv -prune -o -type f -print0; fi

# Checksums have as much entropy as keys: the detectors that look for that would find nothing else.
SECRETS = $(BIN)/detect-secrets-hook --no-verify \
  --disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString \
  --exclude-lines 'KEY:SECRET@|THE-SECRET'

audit: .venv/.uv  ## Look for known vulnerabilities of the packages in constraints.txt; needs the internet
	@$(BIN)/uv tool run pip-audit@2.10.1 --disable-pip --no-deps --requirement constraints.txt $(ARGS)

format: .venv/.dev  ## Sort imports, repair what ruff can, format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: java browser .venv/.dev  ## All tests that need neither a GPU nor the internet: the six tiers below
	@$(PYTEST) tests/browser tests/fuzz tests/models tests/unit
	@$(PYTEST) tests/cluster tests/spark

# An order of files, the long ones first, and WORKERS processes that take one file after the other: while one waits
# for a process to start or to end, another goes on. To step into a test: make test-unit WORKERS=0 ARGS='--pdb -k decode'
# The folders choose the tests; of the markers only `long` counts.
PYTEST = $(BIN)/pytest -m '$(MARKS)' --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
MARKS = not long
SMOKE_TEST = tests/spark/test_run.py::test_each_file_is_one_row_whatever_its_name

test-fast: java .venv/.dev  ## The inner loop, 3 minutes: tests without Spark, and one run of the job
	@$(PYTEST) tests/unit $(SMOKE_TEST)

test-long: MARKS = long
test-long: java .venv/.dev  ## The long rounds that `make test` leaves out (an hour or more)
	@$(PYTEST) tests/cluster tests/spark

test-unit: .venv/.dev  ## Tests without Spark (make test-unit ARGS='-k decode')
	@$(PYTEST) tests/unit

test-fuzz: .venv/.dev  ## Damaged files of each kind (FUZZ_EXAMPLES=5000 make test-fuzz: hours)
	@$(PYTEST) tests/fuzz

test-models: .venv/.dev  ## Real architectures with seeded weights against their authors' code
	@$(PYTEST) tests/models

test-browser: browser .venv/.dev  ## The report page in a real Chromium
	@$(PYTEST) tests/browser

test-spark: java .venv/.dev  ## Tests with Spark in local mode
	@$(PYTEST) tests/spark

test-cluster: java .venv/.dev  ## Tests with separate executors, pretended GPUs, and drivers that are killed
	@$(PYTEST) tests/cluster

test-gpu: .venv/.dev  ## Tests on a CUDA device; without one, or without tests, this fails
	@FAIL_WITHOUT_GPU=1 $(BIN)/pytest tests/gpu -m gpu $(ARGS)

fuzz: .venv/.fuzz  ## Look for files that break a reader, FUZZ_SECONDS=60 for each, with atheris (Linux)
	@for target in $$($(BIN)/python -m tests.fuzz.with_atheris --list); do \
	  echo "== $$target"; \
	  $(BIN)/python -m tests.fuzz.with_atheris $$target --seconds $(FUZZ_SECONDS) $(ARGS) || exit 1; done

bench: java .venv/.dev  ## Measure the whole job; prints JSON (options in ARGS)
	@$(BIN)/python bench/job.py $(ARGS)

wheel: .venv/.uv  ## Build dist/*.whl
	@rm -rf dist
	@$(BIN)/uv build --wheel --python $(BIN)/python --out-dir dist

clean:  ## Remove what builds, tests and the demo leave behind; .venv stays
	@rm -rf build dist demo-out spark-warehouse metastore_db derby.log *.egg-info \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	@rm -rf .venv

# Stamps: an install runs again only when pyproject.toml or constraints.txt is newer.

.venv/.demo: .venv/.uv pyproject.toml constraints.txt
	@echo "Installing the job and Spark into .venv (a minute or two; 0.6 GB to download)"
	@$(UV_INSTALL) -e '.[spark,quickstart]'
	@touch $@

.venv/.dev: .venv/.uv pyproject.toml constraints.txt
	@echo "Installing everything and the development tools into .venv (several GB to download)"
	@$(UV_INSTALL) -e '.[all]' --group dev
	@touch $@

.venv/.fuzz: .venv/.dev
	@$(UV_INSTALL) --group fuzz
	@touch $@

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || :)"; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. Debian, Ubuntu: sudo apt-get install python3-venv"; exit 1; } >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@touch $@

# Spark takes JAVA_HOME before PATH, so this looks in the same order.
java:
	@if [ -n "$$JAVA_HOME" ]; then java="$$JAVA_HOME/bin/java"; where="JAVA_HOME ($$JAVA_HOME)"; \
	else java=java; where=PATH; fi; \
	found=$$("$$java" -version 2>&1 | sed -n 's/.* version "\([^"]*\)".*/\1/p' | head -n 1); \
	major=$$(echo "$$found" | sed 's/^1\.//; s/[^0-9].*//'); \
	[ "$${major:-0}" -ge 17 ] || { \
	  echo "Spark needs Java 17 or later; in $$where there is $${found:-none}."; \
	  echo "  Debian, Ubuntu:  sudo apt-get install openjdk-17-jre-headless"; \
	  echo "  macOS:           brew install openjdk@17"; \
	  echo "  conda:           conda install -c conda-forge openjdk=17"; \
	  echo "Then set JAVA_HOME to its folder (the one with bin/java in it), or unset it and put java in PATH."; \
	  echo "  macOS:           export JAVA_HOME=\"\$$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home\""; \
	  exit 1; } >&2

# Without a browser its tests are skipped, so that `make test` works on any laptop; CI sets FAIL_WITHOUT_BROWSER.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "The tests of the report page need Chromium, and it is not in PATH."; \
	  echo "  Debian, Ubuntu:  sudo apt-get install chromium"; \
	  echo "  macOS:           brew install chromium"; \
	  [ "$$FAIL_WITHOUT_BROWSER" != 1 ] || exit 1; \
	  echo "They are skipped."; } >&2

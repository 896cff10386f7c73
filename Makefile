# Everything a developer runs. `make demo` and `make test` also do all set-up: see tests/harness/setup.py.
# CLUSTER=embedded (default), kind or current; IMAGE=name:tag of a pushed image, for CLUSTER=current.
export CLUSTER ?= embedded
export IMAGE ?=
VECTORS ?=
SELECT ?=
PYTHON ?= python3
BIN := .venv/bin
HARNESS := $(BIN)/python -m tests.harness
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
.DEFAULT_GOAL := help
.PHONY: help setup demo down test unit kernel kernel-vm check update stubs manifests locks vectors sanity bench image clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## system packages (as root), the virtualenv, the Go-built programs
	@$(PYTHON) -m tests.harness.setup

demo: setup ## a cluster, Moorage on it, a claim that becomes a mounted volume
	@$(HARNESS) demo --cluster=$(CLUSTER) --image=$(IMAGE)

down: ## remove all that demo or a killed test left: processes, mounts, loop devices, cgroups
	@$(HARNESS) down

test: setup ## every test: unit, API server, kernel, csi-sanity, cluster
	@$(HARNESS) test

unit: setup ## the tests that need neither root nor a cluster
	@$(HARNESS) test unit

kernel: setup ## the tests of mounts, loop devices and filesystems in this machine's kernel, as root
	@$(HARNESS) test kernel

kernel-vm: setup ## the same in a Debian kernel under qemu, with project quotas; SELECT="-k quotas" for some of them
	@$(HARNESS) kernel-vm -- $(SELECT)

check: setup ## linters, types, import contracts, generated files, chart
	@$(HARNESS) check

update: stubs manifests locks ## regenerate stubs, manifests and lock files

stubs: setup
	@$(HARNESS) generate stubs

manifests: setup
	@$(HARNESS) generate manifests

locks: setup
	$(LOCK) --extra dev -o requirements/dev.txt pyproject.toml
	$(LOCK) --extra operator --extra csi -o requirements/image.txt pyproject.toml
	$(LOCK) -o requirements/build.txt requirements/build.in

vectors: setup ## our decisions against the recorded binder; VECTORS=FILE for other records
	@$(BIN)/python -m tests.vectors $(VECTORS)

sanity: setup ## csi-sanity against each backend
	@$(HARNESS) test sanity

bench: setup ## figures next to the raw floor of this machine
	@$(BIN)/python -m tests.bench

image: setup ## the container image, as an archive in the cache
	@$(HARNESS) image

clean: down ## all of the above, and what was made inside the checkout
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

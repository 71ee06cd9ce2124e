# make demo   set up, generate a video from a prompt through four processes, check that it plays
# make test   set up, run all tests, two files at a time (WORKERS=0: one after the other, in one process)
# make clients  set up the clients of other makers that are tested, each in its own environment (1.3 GB);
#             tests of a client that is not there are skipped. Needs npm
# make clients-long  every command of AIPerf's tutorial, some minutes
# make families-long  every family's tiny model in real processes, some minutes
# make lint   ruff and mypy
# make chaos  3 x 15 minutes of load while processes are killed, frozen, drained and restarted
#             (ARGS="--seconds N --seeds 1 2 3 --directory DIR"; DIR keeps logs and data)
# make bench  some of every topic's measurements, in less than five minutes on two quiet cores; peers that are not
#             installed are left out (make peers)
# make bench-TOPIC  all of one topic: requests, floor, peers, transfer, split, scheduler, faults (ARGS=...)
# make bench-docs  all of all topics into docs/benchmarks, then bench-page: an hour
# make bench-page  docs/benchmarks.md and its plots again, from what was measured
# make peers  set up the systems that are measured beside Triptych, each in its own environment (700 MB)
# make proto  generate proto/triptych_proto from control.proto again
#
# PYTHON=python3.12 takes another interpreter. PIP_ARGS="--extra-index-url URL" adds a package index,
# for example PyTorch's index of CPU builds on a machine without a GPU.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
WORKERS ?= 2
PROMPT ?= a red circle moving right
CLIENTS := .clients
NODE := tests/clients/node
PEERS := .peers
TOPICS := requests floor peers transfer split scheduler faults
RESULTS := docs/benchmarks

.PHONY: demo bench bench-docs bench-page peers $(TOPICS:%=bench-%) chaos test clients clients-long families-long lint types format proto clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An editable install: the stamps are older than pyproject.toml only when dependencies may have changed.
$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@ $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/triptych demo "$(PROMPT)" --output out/demo.mp4

chaos: $(VENV)/installed-dev
	$(BIN)/python -m tests.chaos $(ARGS)

bench: $(VENV)/installed-dev
	@for topic in $(TOPICS); do $(BIN)/python -m benchmarks.$$topic --short || exit 1; done

$(TOPICS:%=bench-%): bench-%: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.$* $(ARGS)

bench-docs: $(VENV)/installed-dev peers
	for topic in $(TOPICS); do $(BIN)/python -m benchmarks.$$topic --json $(RESULTS)/$$topic.jsonl || exit 1; done
	$(MAKE) bench-page

bench-page: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.plots $(RESULTS)
	$(BIN)/python -m benchmarks.page

$(PEERS)/%/installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear $(PEERS)/$*
	$(PEERS)/$*/bin/python -m pip install --quiet $(PIP_ARGS) --requirement $<
	@touch $@

peers: $(PEERS)/ray-serve/installed $(PEERS)/mosec/installed

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

$(CLIENTS)/%/installed: tests/clients/%.txt
	$(PYTHON) -m venv --clear $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/python -m pip install --quiet $(PIP_ARGS) --requirement $<
	@touch $@

$(NODE)/node_modules/.package-lock.json: $(NODE)/package-lock.json
	cd $(NODE) && npm ci
	@touch $@

clients: $(CLIENTS)/openai-2/installed $(CLIENTS)/aiperf/installed $(NODE)/node_modules/.package-lock.json

clients-long: $(VENV)/installed-dev clients
	$(BIN)/python -m pytest tests/clients -m long $(ARGS)

families-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/e2e/test_every_family.py -m long $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
		--python_out=proto --mypy_out=proto --grpc_python_out=proto --mypy_grpc_out=proto \
		proto/triptych_proto/control.proto

clean:
	rm -rf $(VENV) $(CLIENTS) $(PEERS) $(NODE)/node_modules build out *.egg-info

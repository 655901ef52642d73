# Two commands set everything up on a fresh Debian machine, as root: `make run` and `make test`.

PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
DISTS  := core conformance engine $(wildcard plugins/*/*)
# The first line is what the command needs; the second, what its tests need besides.
DEBIAN := python3 python3-venv crun runc nftables libnftables1 iproute2 busybox-static tini \
          docker-registry e2fsprogs procps strace
TESTS  ?=

.PHONY: run test lint docs bench lock packages bytecode
.DEFAULT_GOAL := run

run: bytecode  ## run a real container and show what the engine does
	@$(BIN)/python tests/demo.py

test: bytecode  ## every test of every distribution; says what was skipped and why
	$(BIN)/pytest -n $${TRANSOM_TEST_JOBS:-4} --dist loadgroup $(TESTS)

lint: $(VENV)/.installed $(VENV)/lint/.installed  ## types, style, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(VENV)/lint/bin/mypy --python-executable $(BIN)/python $(addsuffix /src,$(DISTS))
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed  ## build the site into site/
	$(BIN)/mkdocs build --strict

bench: bytecode  ## side by side with docker, where dockerd is installed
	$(BIN)/python bench/run.py

lock:  ## settle the constraints anew from their .in files
	$(BIN)/pip install --quiet pip-tools
	for name in constraints constraints-lint; do \
	    $(BIN)/pip-compile --quiet --upgrade --allow-unsafe --generate-hashes --no-emit-index-url \
	        --no-emit-trusted-host --no-header --no-annotate --strip-extras $$name.in -o $$name.txt; done

packages:
	@missing=$$(dpkg-query -W -f='$${db:Status-Abbrev} $${Package}\n' $(DEBIAN) 2>&1 | grep -v '^ii' || true); \
	if [ -n "$$missing" ]; then apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; fi

# Third-party packages by hash, ours as editable trees: src/ is what runs, entry points are real.
$(VENV)/.installed: constraints.txt $(addsuffix /pyproject.toml,$(DISTS)) | packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation $(addprefix -e ./,$(DISTS))
	@touch $@

$(VENV)/lint/.installed: constraints-lint.txt | $(VENV)/.installed
	@test -x $(VENV)/lint/bin/python || $(PYTHON) -m venv $(VENV)/lint
	$(VENV)/lint/bin/pip install --quiet --require-hashes -r constraints-lint.txt
	@touch $@

# Bytecode beforehand: the command runs as root, often where nothing may be written beside the sources.
bytecode: $(VENV)/.installed
	@$(BIN)/python -m compileall -q $(addsuffix /src,$(DISTS))

# Two commands set everything up on a fresh Debian machine, as root: `make run` and `make test`.

PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
DISTS  := core conformance engine $(wildcard plugins/*/*)
# What the command needs, and what its tests need besides: peers, receiving ends, file systems, a guest's kernel.
DEBIAN := python3 python3-venv crun runc nftables libnftables1 iproute2 busybox-static tini
TESTED := bind9-dnsutils btrfs-progs cpio dbus dmsetup dnsmasq-base docker-registry e2fsprogs etcd-client etcd-server gcc kmod \
          libc6-dev openssl procps rsyslog rsyslog-gnutls rsyslog-openssl strace systemd-journal-remote \
          thin-provisioning-tools udhcpc user-mode-linux xfsprogs
TESTS  ?=
# Workers, and programs that tests run, would all compile the same again where the environment forbids to keep it.
MYPY   := $(VENV)/lint/bin/mypy --python-executable $(BIN)/python $(addsuffix /src,$(DISTS))
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -o cache_dir=$(VENV)/.pytest_cache

.PHONY: run test test-vm test-vm-full zfs-modules lint dist dist-test docs bench lock packages tested bytecode
.DEFAULT_GOAL := run

run: bytecode  ## run a real container and show what the engine does
	@$(BIN)/python tests/demo.py

# What fails beside three others is tried once more, alone: what then fails is a defect, the rest is named as unsteady.
# A run that did not come to its end (pytest's other codes than 1) has nothing to try again.
test: bytecode tested  ## every test of every distribution; says what was skipped and why
	@rm -rf $(VENV)/.pytest_cache
	$(PYTEST) -n $${TRANSOM_TEST_JOBS:-4} $(TESTS) || { code=$$?; [ $$code -eq 1 ] || exit $$code; \
	    echo "== once more, alone: what failed above"; $(PYTEST) --last-failed --last-failed-no-failures none $(TESTS); }

# TESTS names suites of tests/vm/suites.toml here. VM_KERNEL is the path of another user-mode kernel (ARCH=um), VM_MODULES
# where its modules are, VM_JOBS how many guests run side by side.
test-vm: bytecode tested  ## what this host's kernel lacks: suites in guests with a user-mode kernel
	@$(BIN)/python tests/vm/run.py $(if $(VM_KERNEL),--kernel $(VM_KERNEL)) $(if $(VM_MODULES),--modules $(VM_MODULES)) \
	    --jobs $(or $(VM_JOBS),2) $(TESTS)

test-vm-full: bytecode tested  ## those and what needs qemu, without KVM: several CPUs, ZFS
	@$(call install,qemu-system-x86)
	@$(BIN)/python tests/vm/run.py --full --jobs $(or $(VM_JOBS),1) $(TESTS)

# ZFS is in no Debian kernel: modules for the one in qemu, and zfs(8), kept in ~/.cache for every checkout.
zfs-modules: bytecode tested  ## build what the suite zfs of test-vm-full needs, once, in some 10 minutes
	@$(call install,qemu-system-x86 gcc libc6-dev libelf1 make perl file)
	@$(BIN)/python tests/vm/debian.py

# Once, on a busy machine, mypy broke off with an error of its own (code 2; ours are 1): it may try again.
lint: $(VENV)/.installed $(VENV)/lint/.installed  ## types, style, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(MYPY) || { [ $$? -eq 2 ] && $(MYPY) --show-traceback; }
	$(BIN)/lint-imports --no-cache

dist: $(VENV)/.installed  ## a wheel and an sdist of each distribution into dist/
	@for folder in $(DISTS); do (cd $$folder && $(CURDIR)/$(BIN)/hatchling build --directory $(CURDIR)/dist) || exit 1; done

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
	@$(call install,$(DEBIAN))

tested: $(VENV)/node_modules/@fluent-org/logger
	@$(call install,$(TESTED))

# A collector that others wrote. Debian's npm and that of Node's own packages exclude each other: whichever is there.
$(VENV)/node_modules/@fluent-org/logger:
	@command -v npm >/dev/null || { $(call install,nodejs npm); }
	@npm install --silent --no-audit --no-fund --no-save --prefix $(VENV) @fluent-org/logger@1.0.10 >/dev/null

define install
missing=$$(dpkg-query -W -f='$${db:Status-Abbrev} $${Package}\n' $(1) 2>&1 | grep -v '^ii' || true); \
if [ -n "$$missing" ]; then apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; fi
endef

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

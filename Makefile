# make help says what there is. Nothing here is needed to use statbadger.py.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
.PHONY: help test peers test-all golden bench example

help:  ## What the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

$(VENV)/done: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

test: $(VENV)/done  ## The tests that need no server and no root, in a minute or two
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider -n 8 --ignore=tests/peers tests $(ARGS)

peers: $(VENV)/done  ## The real servers: installed, started, spoken to, read back
	$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/peers/requirements.txt
	sh tests/peers/install.sh
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile tests/peers $(ARGS)

test-all:  ## The same tests on every Python from 3.6 up that is found
	sh tests/all_pythons.sh $(ARGS)

golden: $(VENV)/done  ## Rewrite tests/golden; git diff shows what changed
	GOLDEN=rewrite $(VENV)/bin/python -m pytest -q -p no:cacheprovider tests/test_golden.py

example:  ## Rewrite what is generated: the example configuration and the tables of the README
	$(PYTHON) statbadger.py --example-config > statbadger.conf.example
	$(PYTHON) tests/generated.py rewrite

bench: $(VENV)/done  ## What a tick costs, beside collectd and node_exporter when they are installed
	$(VENV)/bin/python tests/bench/bench.py $(ARGS)

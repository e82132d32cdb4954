# Everything that is built, tested and installed starts here: `make` lists it.

SHELL  := /bin/bash -o pipefail
PREFIX ?= /usr/local
bindir  = $(DESTDIR)$(PREFIX)/bin
share   = $(DESTDIR)$(PREFIX)/share
names  := project container container-list# links to ds01 (internal/console, Names)

# NVIDIA's header marks functions as deprecated that go-nvml wraps all the same.
# Everything is built with the same flags, and so SQLite is compiled only once.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

tool := go tool -modfile=internal/tools/go.mod

.PHONY: help build demo test simulate bench bench-quick lint vuln install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/ds01 for the host, bin/ds01-agent for the containers
	go build -o bin/ds01 ./cmd/ds01
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/ds01-agent ./cmd/ds01-agent

demo: ## from a bare machine to a shell in a GPU container, step by step
	@etc/bring-up
	@$(MAKE) --no-print-directory build
	@etc/demo

# The scenarios speak at length. Their whole log goes to a file; what is shown
# is one line for each, and all that a failed one said.
verdicts = awk '/^=== / {t = $$3; next} \
	/^ *--- / {print; if ($$2 == "FAIL:") for (i = 1; i <= n[$$3]; i++) print said[$$3, i]; t = ""; next} \
	/^panic:/ {loud = 1} \
	t == "" || loud {print; next} \
	{said[t, ++n[t]] = $$0}'

test: ## unit tests and scenarios, with the race detector, on real Docker and ssh
	@etc/bring-up clients
	@mkdir -p .cache
	go test -race -timeout 10m $$(go list ./... | grep -v /internal/e2e)
	@echo 'go test -race -v ./internal/e2e (all of its log: .cache/e2e.log)'
	@go test -race -timeout 30m -count 1 -v ./internal/e2e 2>&1 | tee .cache/e2e.log | $(verdicts)

simulate: ## a month of a lab's use, replayed against the code that decides who gets a GPU
	@go test -count 1 -v ./sessions -run '^TestSimulate$$/lab_0' | sed 's/^ *|/|/'

bench: build ## ds01 beside sshd and docker exec, as Markdown; 15 minutes, as root
	@etc/bring-up clients
	@go run ./internal/bench

bench-quick: build ## the same with fewer rounds, in two minutes
	@etc/bring-up clients
	@go run ./internal/bench -quick

lint: ## gofmt, go vet, golangci-lint; the first run builds golangci-lint
	@unformatted=$$(gofmt -l cmd gateway gpu internal keys sessions); \
	  [ -z "$$unformatted" ] || { echo "not gofmt'ed:" $$unformatted; exit 1; }
	go vet ./...
	go vet -tags faults ./cmd/ds01
	$(tool) golangci-lint run

VULNDB ?= https://vuln.go.dev

vuln: ## known vulnerabilities in what we call; asks vuln.go.dev, or VULNDB=URL
	@curl -sf -o /dev/null --max-time 30 $(VULNDB)/index/db.json || \
	  { echo "vuln: nothing was checked, since $(VULNDB) cannot be reached from here"; exit 0; }; \
	  $(tool) govulncheck -db $(VULNDB) ./...

bin/ds01 bin/ds01-agent &:
	@$(MAKE) --no-print-directory build

install: bin/ds01 bin/ds01-agent ## binaries, completions, man page, systemd unit, /etc/ds01/ds01.yaml (an existing one is kept)
	install -D -t $(bindir) bin/ds01 bin/ds01-agent
	install -d $(share)/man/man1 $(share)/bash-completion/completions $(share)/zsh/site-functions $(share)/fish/vendor_completions.d
	bin/ds01 manual > $(share)/man/man1/ds01.1
	{ bin/ds01 completion bash && echo 'complete -o default -o nospace -F __start_ds01 $(names)'; } > $(share)/bash-completion/completions/ds01
	bin/ds01 completion zsh | sed '/^#\?compdef /s/ ds01$$/ ds01 $(names)/' > $(share)/zsh/site-functions/_ds01
	bin/ds01 completion fish > $(share)/fish/vendor_completions.d/ds01.fish
	for name in $(names); do \
	  ln -sf ds01 $(bindir)/$$name; \
	  echo '.so man1/ds01.1' > $(share)/man/man1/$$name.1; \
	  ln -sf ds01 $(share)/bash-completion/completions/$$name; \
	  bin/ds01 completion fish | sed "s/-c ds01 /-c $$name /" > $(share)/fish/vendor_completions.d/$$name.fish; \
	done
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin|$(PREFIX)/bin|' etc/ds01.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/ds01.service
	[ -e $(DESTDIR)/etc/ds01/ds01.yaml ] || install -D -m 0644 etc/ds01.yaml $(DESTDIR)/etc/ds01/ds01.yaml

clean: ## remove what was built
	rm -rf bin .cache

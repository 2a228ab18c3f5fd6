# Each target calls one script or one cargo command; read those.
.PHONY: help demo test bench check setup build firmware

help:
	@echo "make demo             a whole fleet on this machine, in network namespaces; ONCE=1 exits by itself"
	@echo "make demo TARGETS=... scan real targets from this machine, after showing what would be sent"
	@echo "make test             every test; as root also those that need network namespaces"
	@echo "make bench            the figures of docs/benchmarks.md, against nmap, masscan and zmap"
	@echo "make check            formatting, lints, documentation, licences"
	@echo "make build            release programs in target/release"
	@echo "make firmware         the probe as small as it gets, in target/firmware"

setup:
	scripts/setup build

build: setup
	cargo build --release --bin picket --bin picket-probe

firmware: setup
	cargo build --profile firmware --bin picket-probe

demo:
	scripts/demo

test:
	scripts/test

bench:
	scripts/bench

check:
	scripts/check

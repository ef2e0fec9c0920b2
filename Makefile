# What a person, and .ci/run, calls. Everything works without root; what needs more than this
# machine gives is skipped, and listed by name at the end.

FALLBACKS = lock_file poll ipv4
SKIPPED = $(CURDIR)/target/skipped

# What a fallback's build is not shared with: it has other flags.
fallback = RUSTFLAGS='--cfg portpicker_force="$(1)"' cargo $(2) --target-dir target/force-$(1)

.PHONY: test format clippy aarch64 docs unit fallbacks benches fuzz deploy python field bench soak command clean

test: start format clippy aarch64 docs unit fallbacks benches fuzz deploy python field command
	@if [ -s $(SKIPPED) ]; then echo "skipped here:"; sort -u $(SKIPPED) | sed 's/^/  /'; \
	else echo "nothing was skipped"; fi

.PHONY: start
start:
	@mkdir -p target && rm -f $(SKIPPED)

format:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets -- -D warnings

# The other architecture that `portpicker run` knows. The extension module needs a Python of it.
AARCH64 = aarch64-unknown-linux-gnu
aarch64:
	@if [ -d "$$(rustc --print sysroot)/lib/rustlib/$(AARCH64)" ]; then \
	    cargo clippy --workspace --exclude portpicker-python --all-targets --target $(AARCH64) -- -D warnings; \
	else echo "clippy for aarch64: rustup target add $(AARCH64)" | tee -a $(SKIPPED); fi

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

unit:
	PORTPICKER_SKIPPED=$(SKIPPED) cargo test --workspace

# Once more with each fallback in the place of the better mechanism.
fallbacks: $(FALLBACKS:%=fallback-%)

fallback-%:
	PORTPICKER_SKIPPED=$(SKIPPED) $(call fallback,$*,test) -p portpicker -p portpicker-cli \
	    -p portserver

# That they run, not what they measure.
benches:
	cargo bench --workspace --bench '*' -- --quick

# A while of random bytes for everything that reads foreign ones.
fuzz:
	PORTPICKER_SKIPPED=$(SKIPPED) fuzz/run 10

# The files in deploy/, each by a tool that knows its kind.
deploy:
	PORTPICKER_SKIPPED=$(SKIPPED) deploy/check

# The wheel, in a virtual environment of its own.
python:
	PORTPICKER_SKIPPED=$(SKIPPED) python/tests/run

# Every way to pick at once, while everything goes wrong: make soak MINUTES=30
MINUTES = 10
SOAK_PYTHON = target/python/venv/bin/python
soak:
	@mkdir -p target
	cargo run --release -p portpicker-soak -- --minutes $(MINUTES) --report target/soak.md \
	    $(if $(wildcard $(SOAK_PYTHON)),--python $(SOAK_PYTHON))

# The README's first command.
command:
	cargo run --release -- $$$$

# The benchmark of the field, in a workspace of its own: that it works, not what it measures.
field:
	cargo fmt --manifest-path bench/Cargo.toml -p portpicker-bench -p portpicker-bench-driver --check
	cargo clippy --manifest-path bench/Cargo.toml --workspace --all-targets -- -D warnings
	PORTPICKER_SKIPPED=$(SKIPPED) cargo test --manifest-path bench/Cargo.toml --workspace
	PORTPICKER_SKIPPED=$(SKIPPED) bench/run --short --output bench/target/short

# Everything that picks ports, side by side: half an hour, on an idle machine.
bench:
	bench/run

clean:
	cargo clean

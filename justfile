# What is typed often. `just` lists it; https://just.systems

default:
    @just --list

# The program, kernels included where nvcc is
build:
    cargo build --release

# Everything that must hold: format, lints, tests
test:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings
    cargo test --release

# The ops on the CPU, and training, generation and GRPO steps
bench:
    cargo bench
    cargo run --release -- bench train-step
    cargo run --release -- bench generate
    cargo run --release -- bench grpo-step

# Renews docs/configuration.md, checks what the documentation says to type, and builds the pages of the library
docs:
    cargo run --release -- config --markdown > docs/configuration.md
    cargo test --release --test train docs
    cargo test --release --test train recipes
    cargo test --release --doc
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

# One whole round on a GPU: self-test, benchmarks, peers; everything lands in OUT
gpu OUT="gpu-results":
    cargo build --release
    benches/gpu.sh target/release/uncouple {{OUT}}

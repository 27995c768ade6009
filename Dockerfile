# Two images from one build: `service`, which ships, and `demo`, the gateway simulator, traffic, seed and alerts page.
#
# Dependencies are a layer of their own, built from the manifests alone: a change of the sources does not build them
# again. `service` is distroless: no shell, no package manager; its health check is the executable itself. `demo` has the
# shell that ends its children. Neither runs as root or writes to its root file system.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG SERVICE_IMAGE=gcr.io/distroless/cc-debian12:nonroot
ARG DEMO_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /build
ENV CARGO_TERM_COLOR=never SQLX_OFFLINE=true

COPY .cargo .cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY dev/Cargo.toml dev/Cargo.toml
# Not built here, and still a member of the workspace.
COPY bench/Cargo.toml bench/Cargo.toml
RUN mkdir -p src dev/src bench/src \
    && echo 'fn main() {}' | tee src/main.rs bench/src/main.rs > dev/src/main.rs \
    && touch src/lib.rs dev/src/lib.rs \
    && cargo build --release --locked --bins \
    && rm -r src dev/src

COPY . .
ARG GIT_COMMIT=unknown
# Cargo looks at times, and a copied file may be older than the empty one that it replaces.
RUN touch src/main.rs src/lib.rs dev/src/main.rs dev/src/lib.rs \
    && GIT_COMMIT=${GIT_COMMIT} cargo build --release --locked --bins
# What ships cannot be told to die: see src/platform/resilience/crash.rs.
RUN ! grep -q CRASH_AT target/release/axum-orders

FROM ${SERVICE_IMAGE} AS service
COPY --from=build /build/target/release/axum-orders /usr/local/bin/axum-orders
USER 65532:65532
EXPOSE 8080 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/axum-orders", "probe", "http://127.0.0.1:9000/readyz"]
ENTRYPOINT ["/usr/local/bin/axum-orders"]
CMD ["serve"]

FROM ${DEMO_IMAGE} AS demo
COPY --from=build /build/target/release/axum-orders /build/target/release/dev /usr/local/bin/
COPY docs/runbooks /docs/runbooks
# A new volume takes its owner from here.
RUN install -d -o 65532 -g 65532 /ledger
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dev"]

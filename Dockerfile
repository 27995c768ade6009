# Two images from one build. `service` is released. `demo` has the seed, the traffic, the alert inbox and the simulators of the
# stack.
#
# Dependencies are a separate layer, built from the manifests alone, so a change of the sources does not rebuild them.
# `service` is distroless: no shell, no package manager; its health check is the executable itself. `demo` has a shell,
# because `dev` stops its child processes with a shell script. Neither runs as root or writes to its root file system.
#
# Docker uses the digests. The tags document them, and Renovate updates both.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG SERVICE_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
ARG DEMO_IMAGE=debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${RUST_IMAGE} AS build
WORKDIR /build
ENV CARGO_TERM_COLOR=never SQLX_OFFLINE=true

# The executables contain the list of their crates. Without the list, scanners and SBOM generators find no crate.
RUN cargo install cargo-auditable --version 0.7.7 --locked

COPY .cargo .cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY platform/Cargo.toml platform/Cargo.toml
COPY dev/Cargo.toml dev/Cargo.toml
# No image contains `bench`, so Cargo needs only its manifest and an empty `main.rs`. A project may have deleted `bench`: the pattern
# then matches no file. COPY fails without any file, so it has a second source that always exists.
COPY Cargo.lock bench/Cargo.tom[l] bench/
RUN mkdir -p src platform/src dev/src bench/src \
    && echo 'fn main() {}' | tee src/main.rs bench/src/main.rs > dev/src/main.rs \
    && touch src/lib.rs platform/src/lib.rs dev/src/lib.rs \
    && cargo auditable build --release --locked --bins \
    && rm -r src platform/src dev/src

COPY . .
ARG GIT_COMMIT=unknown
# Cargo compares modification times. Without `touch`, Cargo would not compile a copied file that is older than the empty
# file that it replaces.
# The executable has the package's name; both images install it as `service`.
RUN touch src/main.rs src/lib.rs platform/src/lib.rs dev/src/main.rs dev/src/lib.rs \
    && GIT_COMMIT=${GIT_COMMIT} cargo auditable build --release --locked --bins \
    && mkdir target/release/image \
    && ln "target/release/$(sed -n '/^\[package\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml)" target/release/image/service
# A release has no crash points: see platform/src/resilience/crash.rs.
RUN ! grep -q CRASH_AT target/release/image/service

FROM ${SERVICE_IMAGE} AS service
ARG GIT_COMMIT=unknown
ARG VERSION=0.1.0
ARG SOURCE=unknown
# The labels have no build time, so the same commit has the same labels.
LABEL org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${GIT_COMMIT}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.licenses="MIT"
COPY --from=build /build/target/release/image/service /usr/local/bin/service
USER 65532:65532
EXPOSE 8080 9000
# Checks the process and not the database, because an orchestrator that restarts unhealthy containers must not restart one whose
# database is down.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/service", "probe", "http://127.0.0.1:9000/healthz"]
ENTRYPOINT ["/usr/local/bin/service"]
CMD ["serve"]

FROM ${DEMO_IMAGE} AS demo
COPY --from=build /build/target/release/image/service /build/target/release/dev /usr/local/bin/
COPY docs/runbooks /docs/runbooks
# A new volume gets its owner from the directory at its mount point in the image. The simulators write to the volume.
RUN install -d -o 65532 -g 65532 /data
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dev"]

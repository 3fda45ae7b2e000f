# syntax=docker/dockerfile:1
#
# Tollgate as an image that Istio (`oci://`) and other pullers of Wasm modules take: the
# "compat" variant of the Wasm image specification, one layer with /plugin.wasm in it.
#
#   docker build --platform linux/amd64 --provenance=false --tag registry.example.com/tollgate:0.1.0 .
#   docker push registry.example.com/tollgate:0.1.0
#
# The module is the same for every platform, but pullers ask for linux/amd64; and with
# provenance Docker pushes an index of several images, which not every puller takes.
# If a puller wants the annotation of the OCI media types, build with
#   docker buildx build … --annotation module.wasm.image/variant=compat --push
#
# Just the module, without an image:
#   docker build --output type=local,dest=target --target module .      # target/plugin.wasm
#
# Not run by the tests: they need no container runtime. What they check is that the last
# stage is this one layer.

FROM --platform=$BUILDPLATFORM rust:1-slim-bookworm AS build
RUN rustup target add wasm32-wasip1 wasm32-unknown-unknown
WORKDIR /src
COPY . .
# Fails if Cargo.lock is not up to date: an image has the versions that were tested.
RUN cargo fetch --locked
# Also checks what the module imports and exports.
RUN cargo xtask build

FROM scratch AS module
LABEL org.opencontainers.image.title="Tollgate" \
      org.opencontainers.image.description="An Envoy filter that authenticates, limits and meters API traffic against 3scale" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/tollgate.wasm ./plugin.wasm

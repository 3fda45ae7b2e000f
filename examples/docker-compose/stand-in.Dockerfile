# The stand-in for service management (examples/service-management) as an image.
# The context is the root of the repository.

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package service-management

FROM debian:bookworm-slim
# For the requests to its control interface that README.md shows.
RUN apt-get update && apt-get install --yes --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/service-management /usr/local/bin/service-management
COPY examples/service-management/demo.yaml /etc/service-management/data.yaml
USER 65534:65534
EXPOSE 3000
ENTRYPOINT ["service-management", "--data", "/etc/service-management/data.yaml", "--listen", "0.0.0.0:3000"]

# Serin in a container: one binary, no shell, no root.
#
#   docker build -t serin .
#   docker run --read-only -v serin-state:/var/lib/serin -v ./serin.yaml:/etc/serin/serin.yaml:ro \
#       -p 8080:8080 -p 9901:9901 serin
#
# The configuration has to put `state.path` and `admin.socket` under /var/lib/serin, the only place that is written
# to: see config/container.yaml, which is used until another one is mounted over it.
#
# It is built by what is counted under load (benches/optimize), which needs two cores and a quarter of an hour. With
# `cargo build --locked --profile dist` and target/dist/serin in its place it is built without, and takes a third more
# instructions and a sixth more CPU for a plain request.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    rustup component add llvm-tools \
    && benches/optimize \
    && install -D target/optimized/serin /out/usr/local/bin/serin \
    && install -d /out/var/lib/serin /out/etc/serin \
    && install -m 0644 config/container.yaml /out/etc/serin/serin.yaml \
    && /out/usr/local/bin/serin check /out/etc/serin/serin.yaml

# glibc and the certificate authorities, nothing else; `nonroot` is user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr/ /usr/
COPY --from=build /out/etc/ /etc/
COPY --from=build --chown=nonroot:nonroot /out/var/lib/serin /var/lib/serin
VOLUME /var/lib/serin
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["serin", "get", "--config", "/etc/serin/serin.yaml"]
ENTRYPOINT ["serin"]
CMD ["serve", "--config", "/etc/serin/serin.yaml"]

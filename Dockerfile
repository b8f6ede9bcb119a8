# syntax=docker/dockerfile:1
#
# Two images of imgsrv, for every architecture that Go and Debian have:
#
#   docker build --tag imgsrv .                          all that a server uses
#   docker build --tag imgsrv:static --target static .   the program alone
#
# The first is the one that people try, so it has to work with nothing beside it: Debian slim with PostgreSQL's programs (the private
# PostgreSQL), qemu-img (further formats) and xdelta3 (deltas). The second is distroless: a few MiB with no shell, for those who give
# --postgres-url and can do without deltas and further formats, and for the client's commands in CI. Neither runs as root.
#
# goreleaser makes the same two of the programs that it has built already: BINARY=released takes <os>/<arch>/imgsrv from the context.
ARG BINARY=build

# Compiled on the builder's own architecture for the one that is asked for: nothing is emulated. .git has to be in the context, whole
# (.dockerignore): Go takes the version from its tag; without .git the version is "devel".
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags '-s -w' -o /imgsrv ./cmd/imgsrv

FROM scratch AS released
ARG TARGETPLATFORM
COPY $TARGETPLATFORM/imgsrv /imgsrv

FROM ${BINARY} AS binary

# What both have in common is said twice: a Dockerfile knows no other way.
FROM gcr.io/distroless/static-debian12:nonroot AS static
COPY --from=binary /imgsrv /usr/local/bin/imgsrv
# The volume's folder belongs to the image's user, 65532; WORKDIR would make it root's.
COPY --from=gcr.io/distroless/static-debian12:nonroot --chown=65532:65532 /home/nonroot /var/lib/imgsrv
ENV IMGSRV_DATA_DIR=/var/lib/imgsrv \
    IMGSRV_LISTEN=:8080 \
    IMGSRV_TLS_LISTEN=:8443 \
    IMGSRV_METRICS_LISTEN=:9464 \
    IMGSRV_DELTAS=0
USER 65532:65532
VOLUME /var/lib/imgsrv
EXPOSE 8080 8443 9464
ENTRYPOINT ["/usr/local/bin/imgsrv"]
CMD ["start"]

FROM debian:bookworm-slim AS full
# No cluster of Debian's own: imgsrv makes one in its data folder. The user needs a name, since initdb asks for it; its number is
# that of the distroless image, so that a volume can change from one to the other.
RUN mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
    && apt-get -q update \
    && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends ca-certificates postgresql qemu-utils xdelta3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 imgsrv \
    && useradd --uid 65532 --gid 65532 --home-dir /var/lib/imgsrv --no-create-home --shell /usr/sbin/nologin imgsrv \
    && install -d -o imgsrv -g imgsrv -m 0750 /var/lib/imgsrv
COPY --from=binary /imgsrv /usr/local/bin/imgsrv
ENV IMGSRV_DATA_DIR=/var/lib/imgsrv \
    IMGSRV_LISTEN=:8080 \
    IMGSRV_TLS_LISTEN=:8443 \
    IMGSRV_METRICS_LISTEN=:9464
USER 65532:65532
VOLUME /var/lib/imgsrv
EXPOSE 8080 8443 9464
ENTRYPOINT ["/usr/local/bin/imgsrv"]
CMD ["start"]

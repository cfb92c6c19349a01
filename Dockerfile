# kerasseg on a CPU:  docker build -t kerasseg .  &&  docker run --rm -v "$PWD:/data" kerasseg doctor
FROM python:3.11-slim-bookworm
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE constraints.txt ./
COPY kerasseg kerasseg
COPY cli cli
COPY tfrecords tfrecords
RUN python -m pip install --no-cache-dir --constraint constraints.txt . \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["kerasseg"]
CMD ["--help"]

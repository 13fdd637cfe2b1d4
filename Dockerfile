# celery_leader and the app of examples/compose, for workers, beats and whatever else has the app.
# To make it yours: your own requirements file, and your own code in the last COPY.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# What is installed, each version and file named (`make lock`).
ARG REQUIREMENTS=requirements/image.txt
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements requirements
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --require-hashes -r "$REQUIREMENTS"
RUN python -m venv /build/venv \
 && /build/venv/bin/pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY celery_leader celery_leader
RUN /build/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
 && python -m pip --python /opt/venv/bin/python install --no-deps --no-index wheels/*.whl

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /app app
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY examples/compose/proj.py ./
USER 10001:10001
CMD ["celery", "-A", "proj", "worker", "--loglevel", "INFO"]

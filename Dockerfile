# The service. Model and token encoding are in the package: nothing is downloaded when it starts.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/strata
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY memory memory
COPY service service
COPY evals evals
RUN /opt/strata/bin/pip install --no-cache-dir --disable-pip-version-check \
    --constraint constraints.txt .

FROM python:3.12-slim-bookworm
ENV PATH=/opt/strata/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 strata \
    && useradd --uid 10001 --gid strata --create-home --home-dir /data --shell /usr/sbin/nologin strata
COPY --from=build /opt/strata /opt/strata
USER 10001:10001
# Embedded stores are ./.strata here: mount a volume to keep them.
WORKDIR /data
EXPOSE 8000
# http.client takes no proxy from the environment; alive is enough, a restart mends no store.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/health/live'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["strata", "serve"]

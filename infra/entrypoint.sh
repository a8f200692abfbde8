#!/bin/sh
# For programs that read secrets only from the environment: for each NAME below with a NAME_FILE, export NAME with the
# file's content, then exec the command. This keeps secrets out of images, compose files and process arguments.
set -eu

for name in PREFECT_API_DATABASE_CONNECTION_URL PREFECT_SERVER_API_AUTH_STRING PREFECT_API_AUTH_STRING \
    MLFLOW_BACKEND_STORE_URI MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_TRACKING_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if [ ! -r "$file" ] || [ ! -s "$file" ]; then
        echo "entrypoint: ${name}_FILE=$file is missing, empty or not readable by user $(id -u)" >&2
        exit 1
    fi
    export "$name=$(cat "$file")"
done
exec "$@"

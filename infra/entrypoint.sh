#!/bin/sh
# For programs that read a secret from the environment only: for each NAME below that has a NAME_FILE, export NAME with
# the file's content, then become the command. Secrets so stay out of images, compose files and process arguments.
set -eu

for name in PREFECT_API_DATABASE_CONNECTION_URL MLFLOW_BACKEND_STORE_URI; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if [ ! -r "$file" ] || [ ! -s "$file" ]; then
        echo "entrypoint: ${name}_FILE=$file is missing, empty or not readable by user $(id -u)" >&2
        exit 1
    fi
    export "$name=$(cat "$file")"
done
exec "$@"

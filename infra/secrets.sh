#!/bin/sh
# Make infra/secrets/, a file a secret, with random passwords; what is there already is left alone.
# Compose mounts these files as they are, for users of other numbers: so each may be read, in a folder that is closed.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

put() { # NAME, content on stdin
    if [ ! -e "secrets/$1" ]; then
        tr -d '\n' > "secrets/$1.new"
        chmod 444 "secrets/$1.new"
        mv "secrets/$1.new" "secrets/$1"
    fi
}

for name in postgres prefect mlflow nightjar grafana; do
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' | put "${name}_password"
done
echo "postgresql+asyncpg://prefect:$(cat secrets/prefect_password)@postgres:5432/prefect" | put prefect_database
echo "postgresql+psycopg://mlflow:$(cat secrets/mlflow_password)@postgres:5432/mlflow" | put mlflow_database
echo "postgresql+psycopg://nightjar:$(cat secrets/nightjar_password)@postgres:5432/nightjar" | put nightjar_warehouse

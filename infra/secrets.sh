#!/bin/sh
# Create infra/secrets/ with random passwords, one file per secret. Existing files are kept.
# Compose mounts the files as they are, for containers with other user IDs, so they are readable by all; the folder is not.
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

put_url() { # NAME DRIVER LOGIN DATABASE
    echo "$2://$3:$(cat "secrets/$3_password")@postgres:5432/$4" | put "$1"
}

for login in postgres prefect mlflow nightjar nightly analyst grafana; do
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' | put "${login}_password"
done
put_url prefect_database postgresql+asyncpg prefect prefect
put_url mlflow_database postgresql+psycopg mlflow mlflow
put_url warehouse_owner postgresql+psycopg nightjar nightjar
put_url warehouse_reader postgresql+psycopg analyst nightjar
put_url nightjar_warehouse postgresql+psycopg nightly nightjar

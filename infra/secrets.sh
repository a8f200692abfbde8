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

#!/bin/sh
# Create the folder SECRETS with one file per secret: random passwords, which are kept once they exist, and the URLs that
# contain them, for a PostgreSQL at PLACE. Compose mounts the files as they are, for users with other numbers: each file may
# be read (MODE 444), in a folder that only its owner may enter. `nightjar up` calls this too, with its own folder.
set -eu
SECRETS=${SECRETS:-$(dirname "$0")/secrets}
PLACE=${PLACE:-postgres:5432}
MODE=${MODE:-444}
mkdir -p "$SECRETS"
chmod 700 "$SECRETS"
# Addresses of the channels of alerts.yaml, by hand: one file each, such as nightjar_channel_mail. Compose mounts the folder.
mkdir -p "$SECRETS/channels"
case $MODE in *4) chmod 755 "$SECRETS/channels" ;; *) chmod 700 "$SECRETS/channels" ;; esac
umask 077

put() { # NAME, content on stdin; the file appears whole
    cat > "$SECRETS/$1.new"
    chmod "$MODE" "$SECRETS/$1.new"
    mv -f "$SECRETS/$1.new" "$SECRETS/$1"
}

random() {
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

put_url() { # NAME DRIVER LOGIN DATABASE
    printf %s "$2://$3:$(cat "$SECRETS/$3_password")@$PLACE/$4" | put "$1"
}

for login in postgres prefect mlflow nightjar nightly analyst grafana tracking; do
    [ -e "$SECRETS/${login}_password" ] || random | put "${login}_password"
done
[ -e "$SECRETS/prefect_auth" ] || printf nightjar:%s "$(random)" | put prefect_auth
[ -e "$SECRETS/nightjar_pseudonym_key" ] || random | put nightjar_pseudonym_key
[ -e "$SECRETS/mlflow_key" ] || random | put mlflow_key
# The desk's people, with the hash of each token; the administrator's token for whoever signs in first. Add people by hand.
if [ ! -e "$SECRETS/desk_users" ]; then
    random | put desk_token
    printf 'admin: {role: promote, token: %s}\n' "$(sha256sum < "$SECRETS/desk_token" | cut -d ' ' -f 1)" | put desk_users
fi
put_url prefect_database postgresql+asyncpg prefect prefect
put_url mlflow_database postgresql+psycopg mlflow mlflow
put_url warehouse_owner postgresql+psycopg nightjar nightjar
put_url warehouse_reader postgresql+psycopg analyst nightjar
put_url nightjar_warehouse postgresql+psycopg nightly nightjar
# MLflow creates its user `nightjar` at the first start; after that, mlflow's own API changes the password.
put mlflow_auth <<INI
[mlflow]
default_permission = READ
database_uri = $(cat "$SECRETS/mlflow_database")
admin_username = nightjar
admin_password = $(cat "$SECRETS/tracking_password")
INI

#!/bin/sh
# Make a role and a database for each of Prefect, MLflow and Nightjar, with the passwords in the folder SECRETS; run
# again it sets the passwords anew. They are read from files: none stands in an argument or in the server's log.
set -eu
SECRETS=${SECRETS:-/run/secrets}
PGPASSWORD=$(cat "$SECRETS/postgres_password")
PGOPTIONS="-c log_statement=none -c log_min_error_statement=panic -c log_min_duration_statement=-1"
export PGPASSWORD PGOPTIONS

for name in prefect mlflow nightjar; do
    file="$SECRETS/${name}_password"
    if [ ! -s "$file" ]; then
        echo "databases: $file is missing or empty" >&2
        exit 1
    fi
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set name="$name" --set file="$file" --dbname postgres <<'SQL'
\set password `cat :'file'`
select format('create role %I login', :'name') where not exists (select from pg_roles where rolname = :'name') \gexec
alter role :"name" password :'password';
select format('create database %I owner %I', :'name', :'name')
where not exists (select from pg_database where datname = :'name') \gexec
revoke all on database :"name" from public;
SQL
done

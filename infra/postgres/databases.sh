#!/bin/sh
# Create logins and databases for Prefect, MLflow and Nightjar, with the passwords in the folder SECRETS. A rerun resets
# the passwords. They are read from files, so none appears in an argument or in the server's log.
# The warehouse has three logins: `nightjar` owns the tables, `nightly` runs the nights, `analyst` may only read.
set -eu
SECRETS=${SECRETS:-/run/secrets}
PGPASSWORD=$(cat "$SECRETS/postgres_password")
PGOPTIONS="-c log_statement=none -c log_min_error_statement=panic -c log_min_duration_statement=-1"
PGOPTIONS="$PGOPTIONS -c client_min_messages=warning"
export PGPASSWORD PGOPTIONS

query() { # psql's options; statements on stdin
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres "$@"
}

for login in prefect mlflow nightjar nightly analyst; do
    file="$SECRETS/${login}_password"
    if [ ! -s "$file" ]; then
        echo "databases: $file is missing or empty" >&2
        exit 1
    fi
    query --set login="$login" --set file="$file" <<'SQL'
\set password `cat :'file'`
select format('create role %I login', :'login') where not exists (select from pg_roles where rolname = :'login') \gexec
alter role :"login" password :'password';
SQL
done

for database in prefect mlflow nightjar; do
    query --set database="$database" <<'SQL'
select format('create database %I owner %I', :'database', :'database')
where not exists (select from pg_database where datname = :'database') \gexec
revoke all on database :"database" from public;
SQL
done

# The warehouse's migrations grant these two roles their rights on its tables.
for role in nightjar_writer nightjar_reader; do
    query --set role="$role" <<'SQL'
select format('create role %I', :'role') where not exists (select from pg_roles where rolname = :'role') \gexec
grant connect, temporary on database nightjar to :"role";
SQL
done
echo "grant nightjar_writer to nightly; grant nightjar_reader to analyst" | query

#!/bin/sh
# The entrypoint of the PostgreSQL image runs this script once, on an empty volume. The script creates the database and its
# roles: the owner of the schema, the service's restricted role, a role for monitoring, and the role `replicator` for a standby
# (standby.sh). The names of the service's role and of the role for monitoring begin with the name of the database.
# `service migrate` grants rights to the service's role.
set -eu
echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set database="$PGDATABASE" --set owner="$PGUSER" --set service="${PGDATABASE}_service" --set monitor="${PGDATABASE}_monitor" \
  --set owner_password="$OWNER_PASSWORD" --set service_password="$SERVICE_PASSWORD" \
  --set monitor_password="$MONITOR_PASSWORD" --set replication_password="$REPLICATION_PASSWORD" <<'SQL'
create role :"owner" login createrole password :'owner_password';
create role :"service" login password :'service_password';
-- The owner sets timeouts on the service's role, and grants rights to it.
grant :"service" to :"owner" with admin option;
create role :"monitor" login password :'monitor_password' in role pg_monitor;
create role replicator login replication password :'replication_password';
grant alter system on parameter synchronous_standby_names to replicator;
grant execute on function pg_reload_conf to replicator;
create database :"database" owner :"owner";
SQL

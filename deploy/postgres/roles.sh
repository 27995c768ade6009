#!/bin/sh
# Runs once, on an empty volume: the owner of the schema, the service's restricted role, and one that only watches.
# Their names begin with the database's. What the service's role may do is the business of the command `migrate`.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set database="$PGDATABASE" --set owner="$PGUSER" --set app="${PGDATABASE}_app" --set monitor="${PGDATABASE}_monitor" \
  --set owner_password="$OWNER_PASSWORD" --set app_password="$APP_PASSWORD" \
  --set monitor_password="$MONITOR_PASSWORD" <<'SQL'
create role :"owner" login createrole password :'owner_password';
create role :"app" login password :'app_password';
-- The owner sets timeouts on the service's role, and grants it its rights.
grant :"app" to :"owner" with admin option;
create role :"monitor" login password :'monitor_password' in role pg_monitor;
create database :"database" owner :"owner";
SQL

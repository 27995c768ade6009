#!/bin/sh
# Runs once, on an empty volume: the owner of the schema, the service's restricted role, and one that only watches.
# What the service's role may do is the business of `axum-orders migrate`.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set owner_password="$OWNER_PASSWORD" --set app_password="$APP_PASSWORD" \
  --set monitor_password="$MONITOR_PASSWORD" <<'SQL'
create role axum_orders_owner login createrole password :'owner_password';
create role axum_orders_app login password :'app_password';
-- The owner sets timeouts on the service's role, and grants it its rights.
grant axum_orders_app to axum_orders_owner with admin option;
create role axum_orders_monitor login password :'monitor_password' in role pg_monitor;
create database axum_orders owner axum_orders_owner;
SQL

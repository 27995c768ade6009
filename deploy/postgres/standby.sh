#!/bin/sh
# Copies the primary to the volume if the volume has no copy yet, and runs the copy as the synchronous standby of the primary.
# PGHOST is the host of the primary, and PGUSER is the role `replicator`. Arguments are passed to the server.
set -eu
sql() { psql --no-psqlrc --output /dev/null --set ON_ERROR_STOP=1 --dbname postgres --command "$1"; }
# Only the first start needs the primary: a standby must be able to start, and to be promoted, after the loss of the primary.
if [ ! -e "$PGDATA" ]; then
  # Removes the copy of an interrupted start, which is incomplete.
  rm -rf "$PGDATA.incomplete"
  # With a slot, the primary keeps the WAL that the standby has not received yet.
  sql "select pg_create_physical_replication_slot('standby')
       where not exists (select from pg_replication_slots where slot_name = 'standby')"
  pg_basebackup --pgdata "$PGDATA.incomplete" --checkpoint fast --write-recovery-conf --slot standby
  # From now on, the primary confirms a commit once the standby has stored it.
  sql "alter system set synchronous_standby_names = '*'"
  sql 'select pg_reload_conf()'
  mv "$PGDATA.incomplete" "$PGDATA"
fi
# A promoted standby has no standby of its own, and must not wait for one.
exec postgres -c synchronous_standby_names= "$@"

-- Seals: they make changes of the audit log evident, even changes by roles that no privilege and no trigger restricts.
--
-- One worker among all replicas takes complete ranges of events in batches, and writes a seal over each batch. A range
-- is complete when no transaction can add an event to it any more. A seal has the digest of every event, and a hash
-- over the digests, the range, and the previous seal's hash. To change, remove or insert an event, an attacker must
-- recompute every later seal. The newest hashes are also in the service's log, outside of this database. docs/audit.md
-- has the canonical form and a test vector.
--
-- An event's position is (epoch, xact_id, sequence). Transaction ids only increase within a cluster. They restart when
-- a dump is loaded into another cluster. `migrate` detects that by the cluster's identifier, and begins a new epoch.
create table audit_epochs (
  epoch integer primary key,
  system_identifier bigint not null,
  began_at timestamptz not null default now()
);

insert into audit_epochs (epoch, system_identifier)
select 1, system_identifier from pg_control_system();

-- Like the other columns of an event's position, the service cannot set it.
alter table audit_events add column epoch integer not null default 1;

create index audit_events_by_place on audit_events (epoch, xact_id, sequence);

-- Hashed metadata must have one canonical form in every language. Numbers are integers that a double can represent.
-- There is no null (absent keys are omitted), and the depth is limited. One event that cannot be parsed would stop all
-- sealing.
--
-- The check is a function because of its cost. PostgreSQL prepares a constraint's expression for every statement, which
-- takes 8 µs here; PL/pgSQL prepares it once.
create function metadata_has_one_form(metadata jsonb) returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return not jsonb_path_exists(metadata, '$.**{4 to last}')
    and not jsonb_path_exists(metadata, '$.** ? (@.type() == "null")')
    and not jsonb_path_exists(
      metadata,
      '$.** ? (@.type() == "number" && (@ != @.floor() || @ > 9007199254740991 || @ < -9007199254740991))'
    );
end
$$;

alter table audit_events
  add constraint metadata_has_one_form check (metadata_has_one_form(metadata)),
  add constraint timestamp_has_four_digits_of_year check (
    "timestamp" >= '2000-01-01 00:00:00+00' and "timestamp" < '10000-01-01 00:00:00+00'
  );

-- A seal covers every event after the end of the previous seal, up to its own last position. There are no gaps for
-- inserted events. Transaction ids are plain numbers here, because they are never compared with current ones.
create table audit_seals (
  number bigint not null,
  epoch integer not null,
  first_xact_id bigint not null,
  first_sequence bigint not null,
  last_xact_id bigint not null,
  last_sequence bigint not null,
  event_count integer not null,
  -- SHA-256 of each event, in order. They identify a changed event, and allow the removal of an exported partition.
  digests bytea not null,
  sealed_at timestamptz not null,
  previous_hash bytea not null,
  hash bytea not null,
  primary key (number),
  -- Keeps the seals a chain and not a tree, even with two concurrent sealers.
  constraint seal_is_followed_once unique (previous_hash),
  constraint seals_are_counted_from_one check (number >= 1),
  constraint seal_has_events check (event_count >= 1),
  constraint seal_has_a_digest_of_each_event check (octet_length(digests) = 32 * event_count),
  constraint hash_is_a_sha256 check (octet_length(hash) = 32 and octet_length(previous_hash) = 32)
);

create trigger audit_seals_are_never_changed
  before update or delete on audit_seals
  for each row execute function refuse_audit_change();

create trigger audit_seals_are_never_truncated
  before truncate on audit_seals
  for each statement execute function refuse_audit_change();

-- The end of the chain. Without it, a deleted last seal would look like a seal that has not been written yet.
create table audit_seal_head (
  there_is_one boolean primary key default true,
  number bigint not null,
  hash bytea not null,
  constraint there_is_only_one check (there_is_one)
);

insert into audit_seal_head (number, hash) values (0, decode(repeat('00', 32), 'hex'));

-- Moves the end of the chain to a new seal. The function runs with the rights of its owner. The service can append a
-- seal to the chain, and cannot move the end in another way.
--
-- A seal covers only events that are complete: of existing epochs, after the previous seal, and of transactions that
-- have ended. Without that check, one seal up to the largest transaction id would cover every later event without its
-- digest. The sealer would then find nothing to seal.
create function continue_audit_chain() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  previous public.audit_seals;
  current_epoch integer := (select max(epoch) from public.audit_epochs);
begin
  update public.audit_seal_head
  set number = new.number, hash = new.hash
  where number = new.number - 1 and hash = new.previous_hash;
  if not found then
    raise exception 'seal % does not continue the chain', new.number
      using errcode = 'integrity_constraint_violation', constraint = 'seals_continue_the_chain';
  end if;
  select * into previous from public.audit_seals where number = new.number - 1;
  if (new.epoch, new.first_xact_id, new.first_sequence) > (new.epoch, new.last_xact_id, new.last_sequence)
    or (new.epoch, new.first_xact_id, new.first_sequence)
      <= (coalesce(previous.epoch, 0), coalesce(previous.last_xact_id, 0), coalesce(previous.last_sequence, 0))
    or new.epoch > current_epoch
    or (new.epoch = current_epoch and new.last_xact_id >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
    or new.sealed_at > clock_timestamp()
  then
    raise exception 'seal % does not cover events that are complete', new.number
      using errcode = 'integrity_constraint_violation', constraint = 'seals_cover_complete_events';
  end if;
  return null;
end
$$;

create trigger seals_continue_the_chain
  after insert on audit_seals
  for each row execute function continue_audit_chain();

-- Exports: the range of seals that each file contains. Only the owner can record an export. Verification accepts
-- missing events only if a row here and a sealed event of the same id name the file. Verification also needs the file
-- or its hash.
create table audit_exports (
  -- The id of the sealed event. Both are written in one transaction, so `exported_at` is its `recorded_at`.
  event_id uuid primary key,
  exported_at timestamptz not null default now(),
  first_seal bigint not null,
  last_seal bigint not null,
  file_sha256 text not null,
  -- Of two concurrent exports, the second fails.
  constraint seal_is_exported_once unique (first_seal),
  constraint export_has_seals check (1 <= first_seal and first_seal <= last_seal),
  constraint file_hash_is_a_sha256 check (file_sha256 ~ '^[0-9a-f]{64}$')
);

create trigger audit_exports_are_never_changed
  before update or delete on audit_exports
  for each row execute function refuse_audit_change();

create trigger audit_exports_are_never_truncated
  before truncate on audit_exports
  for each statement execute function refuse_audit_change();

-- Restores: the database was set back to an earlier state, and the seals made since then are lost. Their hashes are still
-- in the log. Only the owner can record a restore. Verification accepts a logged seal that is not in the chain only if the
-- seal is listed here, and a sealed event of the same id has the hash of the whole list.
create table audit_restores (
  -- The id of the sealed event. Both are written in one transaction, so `recorded_at` is the event's.
  event_id uuid primary key,
  recorded_at timestamptz not null default now(),
  -- The time of the newest seal that the restore has not lost.
  lost_since timestamptz not null,
  -- The cluster, the timeline and the database, all of which a restore may replace.
  incarnation text not null
);

create table audit_lost_heads (
  event_id uuid not null references audit_restores (event_id),
  number bigint not null,
  hash bytea not null,
  primary key (number, hash)
);

create trigger audit_restores_are_never_changed
  before update or delete on audit_restores
  for each row execute function refuse_audit_change();

create trigger audit_restores_are_never_truncated
  before truncate on audit_restores
  for each statement execute function refuse_audit_change();

create trigger audit_lost_heads_are_never_changed
  before update or delete on audit_lost_heads
  for each row execute function refuse_audit_change();

create trigger audit_lost_heads_are_never_truncated
  before truncate on audit_lost_heads
  for each statement execute function refuse_audit_change();

-- Begins an epoch if this cluster is not the cluster of the latest epoch, or after a restore. Returns the new epoch, or
-- null. The lock for changing the default waits for all writers, so no event is added to an epoch after its end. The wait
-- is limited by lock_timeout, because later writers queue behind it.
--
-- After a restore in the same cluster, transactions and events get the numbers of lost ones again. The epoch tells their
-- positions apart.
--
-- A running service may have written events into the new cluster before this function ran. Those events have the latest
-- epoch and low transaction ids. Events before the end of the chain could never be sealed, so they get the new epoch.
-- They have no seal yet, because they were recorded after the last seal.
create function begin_audit_epoch(event jsonb, is_restored boolean default false) returns integer
language plpgsql
set search_path = public, pg_temp
set lock_timeout = '2s'
as $$
declare
  cluster bigint := (select system_identifier from pg_control_system());
  latest audit_epochs;
  last_seal audit_seals;
begin
  select * into strict latest from audit_epochs order by epoch desc limit 1;
  if latest.system_identifier = cluster and not is_restored then
    return null;
  end if;
  execute format('alter table audit_events alter column epoch set default %s', latest.epoch + 1);
  select * into last_seal from audit_seals order by number desc limit 1;
  alter table audit_events disable trigger audit_events_are_never_changed;
  update audit_events
  set epoch = latest.epoch + 1
  where epoch = latest.epoch
    and last_seal.epoch = latest.epoch
    and recorded_at > last_seal.sealed_at
    and (xact_id, sequence) <= (last_seal.last_xact_id::text::xid8, last_seal.last_sequence);
  alter table audit_events enable trigger audit_events_are_never_changed;
  insert into audit_epochs (epoch, system_identifier) values (latest.epoch + 1, cluster);
  perform record_audit_event(event);
  return latest.epoch + 1;
end
$$;

-- Returns whether the default partition has rows. The service cannot query it, because it has no rights on partitions.
create function audit_default_partition_is_used() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from public.audit_events_default)
$$;

-- Returns the partitions of months that ended before a time. All their events must be at or before a position, the end
-- of the last export. The function only reads.
create function exported_audit_partitions(ended_before timestamptz, epoch integer, xact_id xid8, sequence bigint)
returns setof text
language plpgsql
set search_path = public, pg_temp
set timezone = 'UTC'
as $$
declare
  partition_name text;
  has_others boolean;
begin
  for partition_name in
    select child.relname
    from pg_inherits
    join pg_class as child on child.oid = pg_inherits.inhrelid
    where
      pg_inherits.inhparent = 'audit_events'::regclass
      and child.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$'
      and to_date(right(child.relname, 7), 'YYYY_MM')::timestamptz + interval '1 month' <= ended_before
    order by child.relname
  loop
    execute format(
      'select exists (select from %I as event where (event.epoch, event.xact_id, event.sequence) > ($1, $2, $3))',
      partition_name
    ) into has_others using $2, $3, $4;
    if not has_others then
      return next partition_name;
    end if;
  end loop;
end
$$;

-- Drops one of those partitions and records an audit event. Returns whether the partition was still one of them.
--
-- DROP needs ACCESS EXCLUSIVE locks on the partition, the default partition and the parent. Writers need the parent, so
-- its lock is taken last, when every other lock is held. Each wait is limited by lock_timeout. The caller first waits
-- until no older transaction holds a lock: `platform/src/audit/export/partitions.rs`. DETACH … CONCURRENTLY would avoid
-- these locks, but PostgreSQL does not support it with a default partition.
--
-- The timeout is shorter than deadlock_timeout (1 s). A reader that has locked the parent and waits for the partition
-- is therefore never the victim of a deadlock.
create function drop_exported_audit_partition(
  partition_name text, ended_before timestamptz, epoch integer, xact_id xid8, sequence bigint, event jsonb
)
returns boolean
language plpgsql
set search_path = public, pg_temp
set timezone = 'UTC'
set lock_timeout = '500ms'
as $$
begin
  execute format('lock table only %I, only audit_events_default in access exclusive mode', partition_name);
  lock table only audit_events in access exclusive mode;
  if partition_name not in (select exported_audit_partitions($2, $3, $4, $5)) then
    return false;
  end if;
  execute format('drop table %I', partition_name);
  perform record_audit_event(event);
  return true;
end
$$;

grant select on audit_epochs, audit_seal_head, audit_exports, audit_restores, audit_lost_heads to app_runtime;
grant select, insert on audit_seals to app_runtime;
grant execute on function metadata_has_one_form(jsonb), audit_default_partition_is_used() to app_runtime;
